//! Who makes a change, and which, as the audit log names them.

use serde_json::json;

/// Who changes the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actor {
    kind: ActorKind,
    name: String,
    origin: String,
}

/// What the name of an actor is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ActorKind {
    /// A program that uses this crate and did not name itself.
    #[default]
    Program,
    /// A system user, on the command line.
    User,
    /// A token of the management API.
    Token,
    /// A TLS client of the management API.
    Client,
}

/// A change, as an operator orders it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A new key, user or token.
    Create,
    /// Columns of a key or user.
    Update,
    /// A user is disabled.
    Disable,
    /// A key gets a successor.
    Rotate,
    /// A key or token ends.
    Revoke,
    /// Rows from a file.
    Import,
}

/// Longer names are cut.
const MAX_CHARS: usize = 256;

impl Actor {
    /// The system user who runs a command on a host.
    pub fn system_user(name: &str, host: &str) -> Self {
        Self::new(ActorKind::User, name, host)
    }

    /// A caller of the management API by the name of its token, never the token itself, and its address.
    pub fn token(name: &str, address: &str) -> Self {
        Self::new(ActorKind::Token, name, address)
    }

    /// A caller of the management API by the name in its certificate, and its address.
    pub fn client(name: &str, address: &str) -> Self {
        Self::new(ActorKind::Client, name, address)
    }

    fn new(kind: ActorKind, name: &str, origin: &str) -> Self {
        Self { kind, name: printable(name), origin: printable(origin) }
    }

    /// What it is, its name, and where it is.
    pub(crate) fn describe(&self) -> [&str; 3] {
        [self.kind.name(), &self.name, &self.origin]
    }

    /// The actor and the action, for the triggers of the audit log, which must not omit the change.
    pub(crate) fn to_json(&self, action: Action) -> String {
        let Self { kind, name, origin } = self;
        let (kind, action) = (kind.name(), action.name());
        json!({ "kind": kind, "name": name, "origin": origin, "action": action, "required": true })
            .to_string()
    }
}

/// Without control characters, which a database may refuse and a terminal may obey.
fn printable(text: &str) -> String {
    let characters =
        text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character });
    characters.take(MAX_CHARS).collect()
}

impl ActorKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::User => "user",
            Self::Token => "token",
            Self::Client => "client",
        }
    }
}

impl Action {
    /// Its name in the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Disable => "disable",
            Self::Rotate => "rotate",
            Self::Revoke => "revoke",
            Self::Import => "import",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_without_control_characters() {
        let actor = Actor::token("portal\0\x1b[2J", &"9".repeat(1000));
        assert_eq!(actor.name, "portal\u{fffd}\u{fffd}[2J");
        assert_eq!(actor.origin.len(), MAX_CHARS);
        let told = actor.to_json(Action::Revoke);
        assert!(told.contains(r#""kind":"token""#) && told.contains(r#""action":"revoke""#), "{told}");
    }
}
