"""The differences between the service's own answers and those behind Keystile that the guide lists.

Each has its name in the guide. A difference counts as listed only if the request has that trait, and the two answers
differ in that way.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An answer, reduced to the decision: its status, and who the caller is, where the request was let through."""

    status: int
    caller: tuple | None = None

    @property
    def is_refusal(self):
        return self.status in (401, 402, 403, 423, 429, 503)


# From the trait of a request to whether the difference between `old` and `new` is the one that the guide lists.
LISTED = {
    "shared_prefix": lambda old, new: new.status == 401 or old.caller != new.caller,
    "cached_record": lambda old, new: not old.is_refusal and new.status == 401,
    "two_keys": lambda old, new: new.status == 401,
    "jwt_and_key": lambda old, new: new.is_refusal or old.caller != new.caller,
    "foreign_token": lambda old, new: old.status == 401 and new.caller == ("anonymous", None, None),
    "unreadable_list": lambda old, new: old.status != 403 and new.status == 403,
    "unclear_body": lambda old, new: old.status != 401 and new.status in (402, 403),
    "budget_not_begun": lambda old, new: new.status == 402,
    "further_models": lambda old, new: not old.is_refusal and new.status == 402,
    "free_route": lambda old, new: new.status == 402,
    "unknown_path": lambda old, new: old.status == 404 and new.is_refusal,
}

# In shadow mode only, where Keystile's decision is compared: the service refuses for reasons of its own.
LEFT_TO_THE_SERVICE = "left_to_the_service"


def reason(traits, old, new, is_shadow):
    """The listed reason of a difference, or None."""
    for trait in traits:
        if trait in LISTED and LISTED[trait](old, new):
            return trait
    if is_shadow and LEFT_TO_THE_SERVICE in traits and old.is_refusal and not new.is_refusal:
        return LEFT_TO_THE_SERVICE
    return None
