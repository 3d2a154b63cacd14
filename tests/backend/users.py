"""Logins and tokens of users. Keystile has no part in them."""

import datetime

import jwt
from passlib.hash import bcrypt
from sqlalchemy import select

from caller import Caller, refused
from models import User, now


class UserService:
    def __init__(self, session, settings):
        self.session, self.settings = session, settings

    def log_in(self, username, password):
        """A token. An account is locked after some failures in a row, for a day."""
        user = self.session.scalar(select(User).where(User.username == username))
        if user is None or not user.is_active:
            raise refused(401, "login")
        if user.account_locked and (user.account_locked_until is None or user.account_locked_until > now()):
            raise refused(423, "locked")
        if not bcrypt.verify(password, user.hashed_password):
            user.failed_login_attempts += 1
            if user.failed_login_attempts >= self.settings.LOGIN_MAX_FAILURES:
                user.account_locked = True
                user.account_locked_until = now() + datetime.timedelta(hours=self.settings.LOGIN_LOCK_HOURS)
            self.session.commit()
            raise refused(401, "login")
        user.failed_login_attempts, user.account_locked, user.last_login = 0, False, now()
        self.session.commit()
        return self.token_of(user.id)

    def token_of(self, user_id):
        expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        return jwt.encode({"sub": str(user_id), "exp": expiry}, self.settings.JWT_SECRET, algorithm="HS256")

    def caller_of_token(self, token):
        try:
            claims = jwt.decode(token, self.settings.JWT_SECRET, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            raise refused(401, "invalid_token") from None
        user = self.session.get(User, int(claims["sub"]))
        if user is None or not user.is_active:
            raise refused(401, "inactive_user")
        return Caller("user", user_id=user.id)

    def require_permission(self, user_id, permission):
        """Permissions of the role and of the user are the service's own. It reads them by the user's id."""
        user = self.session.get(User, user_id)
        of_role = (user.role and user.role.permissions) or []
        if permission not in of_role and permission not in (user.permissions or []):
            raise refused(403, "permission")
