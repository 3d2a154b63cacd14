//! The statements that make a database log what changes of its keys: for this database's own columns.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::super::{
    budgets,
    catalog::Catalog,
    changes::{TABLE, TRIGGER},
    row,
    sql::Dialect,
};

/// What is added to the trigger's name, by what it fires after.
const ROWS: &str = "_rows";
const ALL: &str = "_all";
const UPDATE: &str = "";

const POSTGRES: &str = include_str!("../migrations/changes.postgres.sql");

const SQLITE: &str = "CREATE TABLE IF NOT EXISTS keystile_changes (
    id integer PRIMARY KEY AUTOINCREMENT,
    prefix text, -- NULL: everything
    changed_at timestamp NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    source text NOT NULL DEFAULT 'change', -- or 'command'
    seen_at timestamp)";

/// A table whose rows matter to decisions.
struct Watched {
    name: &'static str,
    /// Columns whose changes matter, where they are there.
    columns: Vec<&'static str>,
    /// What matters beside them, of `{row}`: whether what is spent has reached a limit. What it is on the way
    /// there changes with every request, and changes no decision.
    spent: Option<&'static str>,
    /// Selects the prefixes that a row is about; `{row}` is the row.
    prefixes: &'static str,
    /// Selects the prefixes of the row that an insertion of `NEW` replaces, where they may be others: SQLite calls
    /// `INSERT OR REPLACE` no deletion.
    replaced: Option<&'static str>,
}

/// A trigger of SQLite's.
struct SqliteTrigger {
    name: String,
    create: String,
}

/// Columns that change with every request.
const TOTALS: &[&str] = &["total_cost", "current_usage_cents"];

fn watched(catalog: &Catalog) -> Vec<Watched> {
    let columns = |of: &str| -> Vec<&'static str> {
        let columns = row::COLUMNS.iter().filter(|(table, _)| *table == of);
        columns.map(|(_, column)| *column).collect()
    };
    let mut tables = vec![
        Watched {
            name: "api_keys",
            columns: [columns("api_keys"), vec!["user_id", "created_at"]].concat(),
            spent: catalog
                .has_all("api_keys", &["total_cost", "budget_limit_cents"])
                .then_some("COALESCE({row}.total_cost, 0) >= {row}.budget_limit_cents"),
            prefixes: "SELECT {row}.key_prefix",
            replaced: Some("SELECT key_prefix FROM api_keys WHERE id = NEW.id"),
        },
        Watched {
            name: "users",
            columns: [columns("users"), vec!["role_id"]].concat(),
            spent: None,
            prefixes: "SELECT key_prefix FROM api_keys WHERE user_id = {row}.id",
            replaced: catalog.has_all("users", &["email", "username"]).then_some(
                "SELECT k.key_prefix FROM users u JOIN api_keys k ON k.user_id = u.id
                WHERE u.email = NEW.email OR u.username = NEW.username",
            ),
        },
    ];
    if catalog.has_roles() {
        tables.push(Watched {
            name: "roles",
            columns: vec!["id", "name"],
            spent: None,
            prefixes: "SELECT k.key_prefix FROM api_keys k JOIN users u ON u.id = k.user_id WHERE u.role_id = {row}.id",
            replaced: None,
        });
    }
    if budgets::are_read(catalog) {
        tables.push(Watched {
            name: "budgets",
            columns: [&["user_id", "api_key_id"], &budgets::COLUMNS[..]].concat(),
            spent: Some("COALESCE({row}.current_usage_cents, 0) >= {row}.limit_cents"),
            prefixes: "SELECT key_prefix FROM api_keys WHERE id = {row}.api_key_id
                OR ({row}.api_key_id IS NULL AND user_id = {row}.user_id)",
            replaced: Some(
                "SELECT k.key_prefix FROM budgets b JOIN api_keys k ON k.id = b.api_key_id
                OR (b.api_key_id IS NULL AND k.user_id = b.user_id) WHERE b.id = NEW.id",
            ),
        });
    }
    for table in &mut tables {
        table.columns.retain(|column| catalog.has(table.name, column) && !TOTALS.contains(column));
    }
    tables
}

/// The triggers that there must be: table and name.
pub(crate) fn triggers(catalog: &Catalog, dialect: Dialect) -> Vec<(&'static str, String)> {
    let of = |table: &Watched| match dialect {
        Dialect::Postgres => [UPDATE, ROWS, ALL].map(|suffix| format!("{TRIGGER}{suffix}")).to_vec(),
        Dialect::Sqlite => table.sqlite().into_iter().map(|trigger| trigger.name).collect(),
    };
    let tables = watched(catalog);
    tables.iter().flat_map(|table| of(table).into_iter().map(|name| (table.name, name))).collect()
}

/// Everything that is to be run, in order, and a fingerprint of it: what has the same needs nothing.
pub(super) fn statements(catalog: &Catalog, dialect: Dialect, search_path: &str) -> (Vec<String>, String) {
    let tables = watched(catalog);
    let mut statements: Vec<String> = match dialect {
        Dialect::Postgres => POSTGRES
            .split("--;")
            .map(|statement| statement.trim().replace("{search_path}", search_path))
            .filter(|statement| !statement.is_empty())
            .collect(),
        Dialect::Sqlite => vec![SQLITE.to_owned()],
    };
    for table in &tables {
        match dialect {
            Dialect::Postgres => statements.extend(table.postgres(search_path)),
            Dialect::Sqlite => {
                statements.extend(table.sqlite().into_iter().flat_map(SqliteTrigger::statements))
            }
        }
    }
    let fingerprint = HEXLOWER.encode(&Sha256::digest(statements.join("\n"))[..8]);
    if dialect == Dialect::Postgres {
        statements.push(format!("COMMENT ON TABLE {TABLE} IS 'keystile {fingerprint}'"));
    }
    (statements, fingerprint)
}

impl Watched {
    fn of(&self, row: &str) -> String {
        self.prefixes.replace("{row}", row)
    }

    fn spent(&self, row: &str) -> String {
        self.spent.unwrap_or("false").replace("{row}", row)
    }

    fn postgres(&self, search_path: &str) -> Vec<String> {
        let Self { name, .. } = self;
        let drop = |suffix: &str| format!("DROP TRIGGER IF EXISTS {TRIGGER}{suffix} ON {name}");
        // Also for what comes by logical replication, or from a session that says to be a replica.
        let always = |suffix: &str| format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {TRIGGER}{suffix}");
        let columns = self.columns.iter().map(|column| format!("'{column}'")).collect::<Vec<_>>().join(", ");
        vec![
            // The columns are looked at in the function and as JSON, so that nothing depends on them: whoever owns
            // the tables may alter and drop them as ever.
            format!(
                "CREATE OR REPLACE FUNCTION keystile_log_{name}() RETURNS trigger LANGUAGE plpgsql
                SECURITY DEFINER SET search_path = {search_path} AS $body$
                DECLARE
                    before jsonb := to_jsonb(OLD);
                    after jsonb := to_jsonb(NEW);
                BEGIN
                    BEGIN
                        IF TG_OP = 'UPDATE' AND NOT EXISTS (
                            SELECT 1 FROM unnest(ARRAY[{columns}]) AS c WHERE before -> c IS DISTINCT FROM after -> c
                        ) AND ({}) IS NOT DISTINCT FROM ({}) THEN
                            RETURN NULL;
                        END IF;
                        INSERT INTO {TABLE} (prefix) SELECT p FROM ({} UNION {}) AS t (p) WHERE p IS NOT NULL;
                    EXCEPTION WHEN undefined_column THEN
                        INSERT INTO {TABLE} (prefix) VALUES (NULL);
                    END;
                    RETURN NULL;
                EXCEPTION WHEN undefined_table THEN
                    -- Somebody took the log away: sidecars notice, and keys are not to be stuck for it.
                    RAISE WARNING 'keystile: no log of changes: %', SQLERRM;
                    RETURN NULL;
                END
                $body$",
                self.spent("OLD"),
                self.spent("NEW"),
                self.of("OLD"),
                self.of("NEW"),
            ),
            drop(ROWS),
            format!(
                "CREATE TRIGGER {TRIGGER}{ROWS} AFTER INSERT OR DELETE ON {name}
                FOR EACH ROW EXECUTE FUNCTION keystile_log_{name}()"
            ),
            always(ROWS),
            drop(ALL),
            format!(
                "CREATE TRIGGER {TRIGGER}{ALL} AFTER TRUNCATE ON {name}
                FOR EACH STATEMENT EXECUTE FUNCTION keystile_log_everything()"
            ),
            always(ALL),
            drop(UPDATE),
            format!(
                "CREATE TRIGGER {TRIGGER}{UPDATE} AFTER UPDATE ON {name}
                FOR EACH ROW EXECUTE FUNCTION keystile_log_{name}()"
            ),
            always(UPDATE),
        ]
    }

    fn sqlite(&self) -> Vec<SqliteTrigger> {
        let Self { name, .. } = self;
        let differences = self.columns.iter().map(|column| format!("OLD.{column} IS NOT NEW.{column}"));
        let spent = format!("({}) IS NOT ({})", self.spent("OLD"), self.spent("NEW"));
        let changed = differences.chain([spent]).collect::<Vec<_>>().join(" OR ");
        let both = format!("{} UNION {}", self.of("OLD"), self.of("NEW"));
        let trigger = |suffix: &str, event: &str, when: &str, prefixes: &str| {
            let trigger = format!("{TRIGGER}_{name}_{suffix}");
            let create = format!(
                "CREATE TRIGGER {trigger} {event} ON {name} FOR EACH ROW {when}BEGIN
                    INSERT INTO {TABLE} (prefix) SELECT p FROM (SELECT NULL AS p WHERE false UNION {prefixes})
                    WHERE p IS NOT NULL; END"
            );
            SqliteTrigger { name: trigger, create }
        };
        let replaced = self.replaced.map(|prefixes| trigger("replace", "BEFORE INSERT", "", prefixes));
        [
            trigger("insert", "AFTER INSERT", "", &self.of("NEW")),
            trigger("delete", "AFTER DELETE", "", &self.of("OLD")),
            trigger("update", "AFTER UPDATE", &format!("WHEN {changed} "), &both),
        ]
        .into_iter()
        .chain(replaced)
        .collect()
    }
}

impl SqliteTrigger {
    fn statements(self) -> [String; 2] {
        [format!("DROP TRIGGER IF EXISTS {}", self.name), self.create]
    }
}
