"""Money. Only the service knows what a request costs, so this stays when Keystile takes over."""

from sqlalchemy import or_, select

from caller import refused
from models import ApiKey, Budget, now


class BudgetService:
    def __init__(self, session):
        self.session = session

    def reserve(self, caller, path, model, estimate):
        """Adds the estimate to each budget of the request, or refuses it. The rows are locked until the end."""
        if caller.kind != "key":
            return []
        session = self.session
        key = session.scalar(select(ApiKey).where(ApiKey.id == caller.key_id).with_for_update(of=ApiKey))
        limit = None if key.is_unlimited else key.budget_limit_cents
        if limit is not None and (key.total_cost or 0) + estimate > limit:
            raise self._refusal()
        of_caller = or_(Budget.api_key_id == key.id, Budget.api_key_id.is_(None) & (Budget.user_id == key.user_id))
        active = select(Budget).where(of_caller, Budget.is_active).order_by(Budget.id).with_for_update()
        budgets = [budget for budget in session.scalars(active) if binds(budget, path, model)]
        for budget in budgets:
            renew(budget)
            used = budget.current_usage_cents or 0
            if budget.enforce_hard_limit and used + estimate > budget.limit_cents:
                raise self._refusal()
            budget.current_usage_cents = used + estimate
        key.updated_at = now()
        session.commit()
        return [budget.id for budget in budgets]

    def settle(self, reserved, estimate, cost):
        """Replaces the estimate by the cost."""
        if reserved:
            rows = select(Budget).where(Budget.id.in_(reserved)).order_by(Budget.id).with_for_update()
            for budget in self.session.scalars(rows):
                budget.current_usage_cents += cost - estimate
            self.session.commit()

    def _refusal(self):
        self.session.rollback()
        return refused(402, "budget")


def binds(budget, path, model):
    """Whether the budget is for this request: it has begun, and it names the endpoint and the model, or none."""
    if budget.period_start > now() or (budget.period_end <= now() and not budget.auto_renew):
        return False
    endpoints, models = budget.allowed_endpoints or [], budget.allowed_models or []
    names_path = any(path == endpoint or path.endswith("/" + endpoint.strip("/")) for endpoint in endpoints)
    return (names_path or not endpoints) and (model in models or not models)


def renew(budget):
    if budget.period_end <= now():
        length = budget.period_end - budget.period_start
        while budget.period_end <= now():
            budget.period_start, budget.period_end = budget.period_end, budget.period_end + length
        budget.current_usage_cents, budget.last_reset_at = 0, now()
