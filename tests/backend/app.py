"""A small service with API keys and users: `app.py PORT`."""

import sys
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import own_identity
import trusted_identity
from budgets import BudgetService
from caller import Caller, refused
from key_service import KeyService
from settings import Settings
from users import UserService

MODELS = ["gpt-4o", "gpt-4o-mini", "claude-large", "embed-small"]

SETTINGS = Settings.from_environment()
ENGINE = create_engine(SETTINGS.DATABASE_URL, pool_size=8)
CACHE = None
if SETTINGS.REDIS_URL:
    from key_cache import KeyCache

    CACHE = KeyCache(SETTINGS)


class Services:
    """What the routes use, for one request."""

    def __init__(self, session):
        self.keys = KeyService(session, SETTINGS, CACHE)
        self.users = UserService(session, SETTINGS)
        self.budgets = BudgetService(session)


def services():
    with Session(ENGINE, expire_on_commit=False) as session:
        yield Services(session)


Use = Annotated[Services, Depends(services)]


def optional_caller(request: Request, response: Response, use: Use) -> Caller:
    if SETTINGS.IDENTITY == "own":
        caller = own_identity.find_caller(request, use.keys, use.users)
    else:
        caller = trusted_identity.find_caller(request, use.users)
    # For the comparison with Keystile in the access log.
    response.headers["x-backend-key-id"] = str(caller and caller.key_id or "none")
    return caller or Caller("anonymous")


def some_caller(caller: Annotated[Caller, Depends(optional_caller)]) -> Caller:
    if caller.kind == "anonymous":
        raise refused(401, "no_credential")
    return caller


AnyCaller = Annotated[Caller, Depends(optional_caller)]
Known = Annotated[Caller, Depends(some_caller)]


class Login(BaseModel):
    username: str
    password: str


class Chat(BaseModel):
    model: str
    # Routers try these next.
    models: list[str] = []
    fallbacks: list[str] = []
    max_cents: int = 2


class Embedding(BaseModel):
    model: str
    input: Any = ""


class AgentChat(BaseModel):
    agent_config_id: int | str


class Extraction(BaseModel):
    template: str


app = FastAPI(openapi_url=None)
v1 = APIRouter()
# The same routes that OpenAI's API has.
openai = APIRouter()


@app.middleware("http")
async def mark(request, call_next):
    """Tells the tests that this service answered, and what Keystile said of the request."""
    response = await call_next(request)
    response.headers["x-answered-by"] = "backend"
    for name in ["x-auth-result", "x-auth-key-id"]:
        response.headers[f"x-seen-{name}"] = request.headers.get(name, "")
    return response


def answer(request: Request, caller: Caller, use: Services, cost=0, tokens=0):
    """Counts the request, and says who the service took the caller for."""
    if caller.key_id:
        use.keys.count_request(caller.key_id, tokens, cost)
    headers = request.headers
    carries_key = "en_" in f"{headers.get('authorization')} {headers.get('x-api-key')} {request.url.query}"
    return {
        "caller": {"kind": caller.kind, "user_id": caller.user_id, "key_id": caller.key_id},
        "carries_key": carries_key,
    }


def spend(request, caller, use, model, estimate):
    reserved = use.budgets.reserve(caller, request.url.path, model, estimate)
    cost = estimate // 2
    use.budgets.settle(reserved, estimate, cost)
    return answer(request, caller, use, cost=cost, tokens=10 * cost)


@app.post("/api/v1/auth/login")
def log_in(login: Login, use: Use):
    return {"token": use.users.log_in(login.username, login.password)}


@openai.get("/models")
def models(request: Request, caller: Known, use: Use):
    caller.require_scope("models.list")
    allowed = [name for name in MODELS if not caller.allowed_models or may_use(caller, name)]
    return {"data": [{"id": name} for name in allowed], **answer(request, caller, use)}


def may_use(caller, name):
    try:
        caller.require_models([name])
    except Exception:
        return False
    return True


@openai.post("/chat/completions")
@v1.post("/llm/chat/completions")
def chat(request: Request, body: Chat, caller: Known, use: Use):
    caller.require_scope("chat.completions")
    caller.require_models([body.model, *body.models, *body.fallbacks])
    return spend(request, caller, use, body.model, body.max_cents)


@openai.post("/embeddings")
def embeddings(request: Request, body: Embedding, caller: Known, use: Use):
    caller.require_scope("embeddings.create")
    caller.require_models([body.model])
    return spend(request, caller, use, body.model, 2)


@v1.post("/chatbots/{chatbot}/chat")
def chat_with_chatbot(chatbot: str, request: Request, caller: Known, use: Use):
    caller.require_scope("chatbot.chat")
    caller.require_chatbot(chatbot)
    return answer(request, caller, use)


@v1.post("/agents/chat")
def chat_with_agent_of_body(request: Request, body: AgentChat, caller: Known, use: Use):
    caller.require_scope("agent.chat")
    caller.require_agent(body.agent_config_id)
    return answer(request, caller, use)


@v1.post("/agents/{agent}/chat")
def chat_with_agent(agent: str, request: Request, caller: Known, use: Use):
    caller.require_scope("agent.chat")
    caller.require_agent(agent)
    return answer(request, caller, use)


@v1.post("/extract")
def extract(request: Request, body: Extraction, caller: Known, use: Use):
    caller.require_extract_template(body.template)
    return answer(request, caller, use)


@v1.get("/reports")
def reports(request: Request, caller: Known, use: Use):
    use.users.require_permission(caller.user_id, "reports.read")
    return answer(request, caller, use)


@v1.get("/me")
def me(request: Request, caller: Known, use: Use):
    return answer(request, caller, use)


@v1.get("/news")
def news(request: Request, caller: AnyCaller, use: Use):
    """With or without a key."""
    return answer(request, caller, use)


@v1.delete("/keys/{key_id}")
def revoke(key_id: int, caller: Known, use: Use):
    if caller.kind != "user":
        raise refused(403, "user_only")
    use.keys.revoke_key(key_id)
    return {}


@app.get("/statistics")
def statistics():
    return CACHE.statistics() if CACHE else {}


app.include_router(v1, prefix="/api/v1")
app.include_router(openai, prefix="/api/v1")
app.include_router(openai, prefix="/v1")

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
