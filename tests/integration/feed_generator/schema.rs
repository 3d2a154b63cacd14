//! Random tables: what applications have made of `users`, `api_keys` and `budgets`.

use rand::{Rng, RngExt, rngs::StdRng, seq::IndexedRandom};

/// The tables of one world.
#[derive(Debug, Clone)]
pub struct Schema {
    pub is_postgres: bool,
    /// Whether `api_keys` was replaced by a view, which no MERGE takes.
    pub is_view: bool,
    /// Where the tables are made; `public` when absent.
    pub namespace: Option<&'static str>,
    pub keys: Layout,
    pub users: Layout,
    /// Whether `is_active` of a key is computed from `status`.
    pub is_generated: bool,
    pub has_foreign_key: bool,
    /// Optional columns and tables that are there from the start.
    pub options: Vec<Addition>,
    types: Types,
    extras: Vec<&'static str>,
}

/// How rows of a table are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Plain,
    /// A child table holds some of the rows.
    Inherited,
    /// Three partitions, by ranges of the id.
    Ranges,
    /// Two partitions: a row that is disabled moves to the other.
    ByActive,
}

/// What may be there from the start, or be added later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    DeletedAt,
    ExpiresAt,
    AllowedIps,
    AccountLocked,
    Spending,
    Budgets,
}

pub const ADDITIONS: [Addition; 6] = [
    Addition::DeletedAt,
    Addition::ExpiresAt,
    Addition::AllowedIps,
    Addition::AccountLocked,
    Addition::Spending,
    Addition::Budgets,
];

#[derive(Debug, Clone)]
struct Types {
    id: &'static str,
    prefix: &'static str,
    hash: &'static str,
    time: &'static str,
    json: &'static str,
    flag: &'static str,
    cents: &'static str,
    budgets: &'static str,
}

/// Columns that belong to the application. Some have names that a careless trigger takes for its own variables.
const EXTRAS: &[&str] = &[
    "prefix text",
    "p text",
    "c integer",
    "before jsonb",
    "after text",
    "source text",
    "payload json DEFAULT '{\"a\": \"\\u0000\"}'",
    "\"Odd Name\" text",
    "xid integer",
];

impl Schema {
    pub fn random(rng: &mut StdRng, is_postgres: bool) -> Self {
        let choose = |rng: &mut StdRng, from: &[&'static str]| *from.choose(rng).unwrap();
        let mut schema = Self {
            is_postgres,
            is_view: false,
            namespace: None,
            keys: Layout::Plain,
            users: Layout::Plain,
            is_generated: rng.random_bool(0.2),
            has_foreign_key: rng.random_bool(0.5),
            options: ADDITIONS.into_iter().filter(|_| rng.random_bool(0.4)).collect(),
            types: Types {
                id: choose(rng, &["integer", "bigint"]),
                prefix: choose(rng, &["varchar(8)", "char(8)", "text", "varchar(16)"]),
                hash: choose(rng, &["varchar(255)", "text", "char(60)"]),
                time: choose(rng, &["timestamp", "timestamptz"]),
                json: choose(rng, &["json", "jsonb", "text"]),
                flag: choose(rng, &["boolean", "boolean", "smallint"]),
                cents: choose(rng, &["integer", "bigint", "numeric(12, 2)"]),
                budgets: "budgets",
            },
            extras: EXTRAS.iter().copied().filter(|_| is_postgres && rng.random_bool(0.2)).collect(),
        };
        if is_postgres {
            schema.namespace =
                [None, None, Some("app"), Some("\"Odd Schema\"")].choose(rng).copied().flatten();
            let layouts = [Layout::Plain, Layout::Plain, Layout::Plain, Layout::Inherited, Layout::Ranges];
            schema.users = *layouts.choose(rng).unwrap();
            schema.keys = *layouts.choose(rng).unwrap();
            if !schema.is_generated && rng.random_bool(0.15) {
                schema.keys = Layout::ByActive;
            }
        } else {
            schema.types.budgets = choose(rng, &["budgets", "Budgets"]);
        }
        schema.has_foreign_key &= schema.users == Layout::Plain;
        schema
    }

    /// The statements that make the tables, without rows.
    pub fn create(&self) -> String {
        let Types { id, prefix, hash, time, flag, .. } = &self.types;
        let key = |layout: Layout| if layout == Layout::Plain { " PRIMARY KEY" } else { " NOT NULL" };
        let active = match self.is_generated {
            true => {
                format!(
                    "status text, is_active {flag} GENERATED ALWAYS AS ({}) STORED",
                    self.flag_of_status()
                )
            }
            false => format!("is_active {flag}"),
        };
        let references = if self.has_foreign_key { " REFERENCES users (id)" } else { "" };
        let extras: String = self.extras.iter().map(|extra| format!(", {extra}")).collect();
        let mut sql = self.namespace.map_or_else(String::new, |namespace| {
            format!(
                "CREATE SCHEMA {namespace}; ALTER DATABASE postgres SET search_path = {namespace}, public;
                SET search_path = {namespace}, public;"
            )
        });
        sql += &format!(
            "CREATE TABLE users (id {id}{}, email text, username text, hashed_password text, is_active {flag}){};
            CREATE TABLE api_keys (id {id}{}, name text, key_hash {hash}, key_prefix {prefix},
                user_id {id}{references}, created_at {time}, last_used_at {time}, total_requests bigint,
                {active}{extras}){};",
            key(self.users),
            self.divided(self.users),
            key(self.keys),
            self.divided(self.keys),
        );
        sql += &self.parts("users", self.users);
        sql += &self.parts("api_keys", self.keys);
        sql += "CREATE INDEX ON_PREFIX ON api_keys (key_prefix);";
        let additions: String = self.options.iter().map(|addition| self.add(*addition) + ";").collect();
        sql + &additions
    }

    fn flag_of_status(&self) -> &'static str {
        if self.types.flag == "boolean" {
            "status = 'on'"
        } else {
            "CASE WHEN status = 'on' THEN 1 ELSE 0 END"
        }
    }

    fn divided(&self, layout: Layout) -> &'static str {
        match layout {
            Layout::Ranges => " PARTITION BY RANGE (id)",
            Layout::ByActive => " PARTITION BY LIST (is_active)",
            Layout::Plain | Layout::Inherited => "",
        }
    }

    fn parts(&self, table: &str, layout: Layout) -> String {
        match layout {
            Layout::Plain => String::new(),
            Layout::Inherited => format!("CREATE TABLE {table}_child () INHERITS ({table});"),
            Layout::Ranges => [("a", "0", "6"), ("b", "6", "12"), ("c", "12", "MAXVALUE")]
                .map(|(part, from, to)| {
                    format!(
                        "CREATE TABLE {table}_{part} PARTITION OF {table} FOR VALUES FROM ({from}) TO ({to});"
                    )
                })
                .concat(),
            Layout::ByActive => ["0", "1"]
                .map(|active| {
                    format!("CREATE TABLE {table}_{active} PARTITION OF {table} FOR VALUES IN ('{active}');")
                })
                .concat(),
        }
    }

    /// The statement of the application's own migration that adds this.
    pub fn add(&self, addition: Addition) -> String {
        let Types { time, json, flag, cents, id, budgets, .. } = &self.types;
        let column = |table: &str, column: String| format!("ALTER TABLE {table} ADD COLUMN {column}");
        match addition {
            Addition::DeletedAt => column("api_keys", format!("deleted_at {time}")),
            Addition::ExpiresAt => column("api_keys", format!("expires_at {time}")),
            Addition::AllowedIps => column("api_keys", format!("allowed_ips {json}")),
            Addition::AccountLocked => column("users", format!("account_locked {flag}")),
            Addition::Spending => ["total_cost", "budget_limit_cents"]
                .map(|name| column("api_keys", format!("{name} {cents}")))
                .join("; "),
            Addition::Budgets => format!(
                "CREATE TABLE {budgets} (id {id}, user_id {id}, api_key_id {id}, limit_cents integer,
                    current_usage_cents integer)"
            ),
        }
    }

    /// Puts in a user.
    pub fn user(&self, id: usize, is_active: bool, rng: &mut StdRng) -> String {
        format!(
            "INSERT INTO {} (id, email, username, hashed_password, is_active)
            VALUES ({id}, 'user{id}@example.com', 'user{id}', '!', '{}');",
            self.target("users", self.users, rng),
            u8::from(is_active),
        )
    }

    /// Puts in a key that works.
    pub fn key(&self, id: usize, user: usize, credential: &str, hash: &str, rng: &mut StdRng) -> String {
        let (column, value) = if self.is_generated { ("status", "on") } else { ("is_active", "1") };
        format!(
            "INSERT INTO {} (id, name, key_hash, key_prefix, user_id, {column})
            VALUES ({id}, 'key', '{hash}', '{}', {user}, '{value}');",
            self.target("api_keys", self.keys, rng),
            &credential[..8],
        )
    }

    fn target(&self, table: &str, layout: Layout, rng: &mut StdRng) -> String {
        let to_child = layout == Layout::Inherited && rng.random_bool(0.5);
        if to_child { format!("{table}_child") } else { table.to_owned() }
    }

    /// Sets a key's flag.
    pub fn set_active(&self, is_active: bool) -> String {
        match (self.is_generated, is_active) {
            (true, true) => "status = 'on'".into(),
            (true, false) => "status = 'off'".into(),
            (false, _) => format!("is_active = '{}'", u8::from(is_active)),
        }
    }
}

/// A credential that nobody else has.
pub fn credential(rng: &mut StdRng) -> String {
    let mut text = |length| -> String {
        std::iter::repeat_with(|| char::from(*b"abcdefghijklmnopqrstuvwxyz0123456789".choose(rng).unwrap()))
            .take(length)
            .collect()
    };
    format!("ks_{}", text(24))
}

/// Whether this happens, so often in a hundred.
pub fn chance(rng: &mut impl Rng, percent: u32) -> bool {
    rng.random_range(0..100) < percent
}
