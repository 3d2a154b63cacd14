//! The OpenAPI document, generated from the handlers.

use axum::Router;
use utoipa::{
    OpenApi as _,
    openapi::{
        ContentBuilder, OpenApi, PathItem, Ref, ResponseBuilder,
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{api::Api, keys, problem::Problem, users};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Keystile management API",
        description = "Creates, changes, rotates and revokes API keys and users.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem)),
    tags((name = "keys", description = "API keys"), (name = "users", description = "Users who own keys"))
)]
struct Document;

/// The document.
pub fn document() -> OpenApi {
    parts().1
}

/// The routes, and the document that describes them.
pub(super) fn parts() -> (Router<Api>, OpenApi) {
    let (routes, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::get, keys::update))
        .routes(routes!(keys::rotate))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::explain))
        .routes(routes!(keys::identify))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::get, users::update))
        .split_for_parts();
    let components = document.components.get_or_insert_default();
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("token", token);
    components.add_security_scheme(
        "certificate",
        SecurityScheme::MutualTls {
            description: Some("A client that --tls-client-names gives a scope".to_owned()),
            extensions: None,
        },
    );
    for item in document.paths.paths.values_mut() {
        operations(item).for_each(with_problems);
    }
    (routes, document)
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.patch].into_iter().filter_map(Option::as_mut)
}

/// Every other answer is a problem.
fn with_problems(operation: &mut Operation) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new()
        .description("A problem: 400, 401, 403, 404, 409, 412, 413, 415, 422, 429, 500 or 503")
        .content("application/problem+json", content)
        .build();
    operation.responses.responses.insert("default".to_owned(), problem.into());
}
