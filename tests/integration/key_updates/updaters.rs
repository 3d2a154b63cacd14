//! Two who change one key at once.

use keystile::store::{ManagementError, Patch, Resource, RowVersion};
use serde_json::json;

use super::{patch, places, show, update};

fn name(text: &str) -> Patch {
    Patch::parse(Resource::Key, json!({ "name": text }).to_string().as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_changes_of_the_same_version_exactly_one_is_made() {
    for place in places().await {
        let (one, two) = (place.database(), place.database());
        for round in 0..20 {
            let version = RowVersion::of(&one.find_key("7").await.unwrap());
            let patches = [name(&format!("one {round}")), name(&format!("two {round}"))];
            let (first, second) = tokio::join!(
                one.update_key("7", &patches[0], Some(version)),
                two.update_key("7", &patches[1], Some(version)),
            );
            let now = one.find_key("7").await.unwrap();
            let refused = |result: Result<_, ManagementError>| match result {
                Ok(_) => false,
                Err(ManagementError::VersionMismatch { current, .. }) => {
                    assert_eq!(current, RowVersion::of(&now));
                    true
                }
                Err(error) => panic!("{error}"),
            };
            let winner = match (refused(first), refused(second)) {
                (false, true) => "one",
                (true, false) => "two",
                both => panic!("refused: {both:?}"),
            };
            assert_eq!(now.text("name"), format!("{winner} {round}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_without_a_version_apply_to_the_newest_row_one_after_the_other() {
    for place in places().await {
        patch(&place, r#"{"tags": ["start"], "permissions": {}}"#).done();
        let mut tasks = Vec::new();
        for at in 0..8 {
            let database = place.database();
            tasks.push(tokio::spawn(async move {
                let patch = json!({ "permissions": { format!("p{at}"): at } }).to_string();
                let patch = Patch::parse(Resource::Key, patch.as_bytes()).unwrap();
                let patch = patch.edit_list("tags", vec![format!("t{at}")], vec![]).unwrap();
                database.update_key("7", &patch, None).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let key = show(&place);
        assert_eq!(key["tags"].as_array().map(Vec::len), Some(9), "{key}");
        assert_eq!(key["permissions"].as_object().map(serde_json::Map::len), Some(8), "{key}");
    }
}

#[tokio::test]
async fn version_follows_changes_and_not_use() {
    for place in places().await {
        let first = show(&place)["version"].as_str().unwrap().to_owned();
        place
            .execute("UPDATE api_keys SET total_requests = 9, total_cost = 2, last_used_at = '2026-01-01'")
            .await;
        place.execute("UPDATE api_keys SET updated_at = '2026-01-01'").await;
        assert_eq!(show(&place)["version"], first);
        let updated = update(&place, &["--if-version", &first, "--tag", "a"]).json();
        assert_ne!(updated["version"], first);
        assert_eq!(updated, show(&place));
        let said = update(&place, &["--if-version", &first, "--tag", "b"]).failed(1);
        let current = updated["version"].as_str().unwrap();
        assert!(said.contains("changed in between") && said.contains(current), "{said}");
        let said = update(&place, &["--if-version", &first, "--tag", "b", "--dry-run"]).failed(1);
        assert!(said.contains(current), "{said}");
        assert_eq!(show(&place), updated);
        place.execute("UPDATE api_keys SET allowed_ips = '[\"10.0.0.1\"]'").await;
        assert_ne!(show(&place)["version"], current, "changes by others count");
    }
}
