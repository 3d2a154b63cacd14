//! Whose the imported keys are: users that exist, or users that the import creates.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{
    super::{Database, Result, Schema, Statement, users::NewUser},
    row::{ExportedUser, ImportRow},
};

/// How owners become users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnerRule {
    /// Each is a user already: the one whose email or username is its name or its id.
    Match {
        /// Whether the owner's id is `users.id`.
        by_id: bool,
    },
    /// The same, and an owner that is no user becomes one.
    Create {
        /// Whether the owner's id is `users.id`.
        by_id: bool,
        /// The domain of the email of an owner that has none.
        email_domain: Option<String>,
    },
    /// All keys are of the user with this id or email.
    One(String),
}

/// Whose a key is.
pub(super) enum Owner {
    /// The user with this id.
    Existing(String),
    /// The new user with this email.
    New(String),
}

/// The users who may own keys, and those that are to be created.
pub(super) struct Owners {
    rule: OwnerRule,
    ids: HashSet<String>,
    emails: HashMap<String, Vec<String>>,
    usernames: HashMap<String, Vec<String>>,
    /// By email, each with the line of its first key.
    new: BTreeMap<String, (u64, ExportedUser, NewUser)>,
}

impl Owners {
    pub(super) async fn read(database: &Database, schema: &Schema, rule: &OwnerRule) -> Result<Self> {
        let text = |column: &'static str, wrap: [&str; 2]| match schema.has("users", column) {
            true => format!("{}CAST({} AS text){}", wrap[0], schema.name("users", column), wrap[1]),
            false => "NULL".to_owned(),
        };
        let sql = format!(
            "SELECT CAST(id AS text), {}, {} FROM {}",
            text("email", ["lower(", ")"]),
            text("username", ["", ""]),
            schema.relation("users")
        );
        let mut users = Self {
            rule: rule.clone(),
            ids: HashSet::new(),
            emails: HashMap::new(),
            usernames: HashMap::new(),
            new: BTreeMap::new(),
        };
        for values in database.query(Statement::new(sql, [])).await? {
            let mut values = values.into_iter();
            let Some(Some(id)) = values.next() else { continue };
            for names in [&mut users.emails, &mut users.usernames] {
                if let Some(Some(name)) = values.next() {
                    names.entry(name).or_default().push(id.clone());
                }
            }
            users.ids.insert(id);
        }
        if let OwnerRule::One(user) = rule {
            let user = database.find_user(user).await?.text("id");
            users.rule = OwnerRule::One(user);
        }
        Ok(users)
    }

    /// Whose the key is.
    pub(super) fn of(&mut self, row: &ImportRow) -> Result<Owner, String> {
        let Some(exported) = &row.exported else { return self.by_columns(row).map(Owner::Existing) };
        if let OwnerRule::One(user) = &self.rule {
            return Ok(Owner::Existing(user.clone()));
        }
        let Some(owner) = exported.owner.as_ref().filter(|owner| owner.names().next().is_some()) else {
            return Err("the file does not say whose it is; export the owners too, or give --user".into());
        };
        if let Some(id) = self.existing(owner)? {
            return Ok(Owner::Existing(id));
        }
        match &self.rule {
            OwnerRule::Create { email_domain, .. } => {
                let user = owner.to_user(email_domain.as_deref())?;
                self.create(row.line, owner, user).map(Owner::New)
            }
            _ => Err("its owner is no user, by email or username; give --users create, --user, or --by-id where the \
                      owner's id is the user's"
                .into()),
        }
    }

    /// The number of users that are to be created.
    pub(super) fn created(&self) -> usize {
        self.new.len()
    }

    /// The users that are to be created, each with the line of its first key.
    pub(super) fn into_new(self) -> impl Iterator<Item = (u64, NewUser)> {
        self.new.into_values().map(|(line, _, user)| (line, user))
    }

    fn by_columns(&self, row: &ImportRow) -> Result<String, String> {
        let by_email = match &row.user_email {
            None => None,
            Some(email) => match self.emails.get(&email.to_lowercase()).map(Vec::as_slice) {
                Some([id]) => Some(id.clone()),
                Some([_, ..]) => return Err("several users have this user_email; give user_id".into()),
                _ => return Err("no user has this user_email; create them first".into()),
            },
        };
        match (row.value("user_id"), by_email) {
            (Some(id), Some(other)) if *id != other => Err("user_id and user_email are two users".into()),
            (Some(id), _) if !self.ids.contains(id) => Err("no user has this user_id".into()),
            (Some(id), _) => Ok(id.to_owned()),
            (None, Some(id)) => Ok(id),
            (None, None) => Err("user_id or user_email is missing".into()),
        }
    }

    fn existing(&self, owner: &ExportedUser) -> Result<Option<String>, String> {
        let by_id =
            matches!(&self.rule, OwnerRule::Match { by_id: true } | OwnerRule::Create { by_id: true, .. });
        if by_id && let Some(id) = owner.id.as_ref().filter(|id| self.ids.contains(*id)) {
            return Ok(Some(id.clone()));
        }
        let named = |name: &str| {
            let (email, username) = (self.emails.get(&name.to_lowercase()), self.usernames.get(name));
            email.into_iter().chain(username).flatten()
        };
        let users: BTreeSet<_> = owner.names().flat_map(named).collect();
        let mut users = users.into_iter();
        match (users.next(), users.next()) {
            (Some(_), Some(_)) => {
                Err("its owner could be several users, by email and username; give --by-id or --user".into())
            }
            (found, _) => Ok(found.cloned()),
        }
    }

    /// Adds a user, once for all of its keys. Two owners never become one user.
    fn create(&mut self, line: u64, owner: &ExportedUser, user: NewUser) -> Result<String, String> {
        let email = user.email.clone();
        if let Some((_, other, _)) = self.new.get(&email.to_lowercase()) {
            return if other == owner {
                Ok(email)
            } else {
                Err("two owners would become one user, by email".into())
            };
        }
        if self.new.values().any(|(_, _, other)| other.username == user.username) {
            return Err("two owners would become one user, by username".into());
        }
        self.new.insert(email.to_lowercase(), (line, owner.clone(), user));
        Ok(email)
    }
}

impl ExportedUser {
    fn names(&self) -> impl Iterator<Item = &str> {
        [&self.name, &self.id].into_iter().flatten().map(String::as_str).filter(|name| !name.is_empty())
    }

    fn to_user(&self, email_domain: Option<&str>) -> Result<NewUser, String> {
        let username = self.names().next().unwrap_or_default().to_owned();
        let email = match (self.names().find(|name| is_email(name)), email_domain) {
            (Some(email), _) => email.to_owned(),
            (None, Some(domain)) => format!("{username}@{domain}"),
            (None, None) => {
                return Err(
                    "its owner is no user, and has no email address to become one; give --email-domain"
                        .into(),
                );
            }
        };
        if !is_email(&email) {
            return Err(
                "its owner's name cannot be part of an email address; create the user, and import again"
                    .into(),
            );
        }
        Ok(NewUser { email, username, ..NewUser::default() })
    }
}

/// Whether a text looks like an email address.
fn is_email(text: &str) -> bool {
    let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '@';
    let is_part = |part: &str| !part.is_empty() && part.chars().all(allowed);
    text.split_once('@').is_some_and(|(name, domain)| is_part(name) && is_part(domain))
}
