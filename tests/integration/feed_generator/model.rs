//! Which keys may be allowed: asked of the tables themselves, by rules of the test's own.

use std::collections::{HashMap, HashSet};

use super::database::Database;

/// What the tables have at one moment.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    columns: HashMap<String, HashSet<String>>,
    /// Where a session finds each table.
    places: HashMap<String, String>,
    /// Columns that are computed, with their tables.
    generated: HashSet<(String, String)>,
    /// Hash and prefix of each key that may be allowed.
    good: HashSet<(String, String)>,
}

const POSTGRES: &str =
    "SELECT t.name, a.attname, quote_ident(n.nspname) || '.' || quote_ident(c.relname), a.attgenerated <> ''
    FROM (VALUES ('api_keys'), ('users'), ('budgets')) AS t (name)
    JOIN pg_class c ON c.oid = to_regclass(t.name) JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped";
const SQLITE: &str =
    "SELECT lower(m.name), lower(c.name), m.name, iif(c.hidden > 1, 't', 'f') FROM sqlite_schema m
    JOIN pragma_table_xinfo(m.name) c WHERE lower(m.name) IN ('api_keys', 'users', 'budgets')";

impl Facts {
    /// Reads them.
    ///
    /// # Errors
    /// What the database says.
    pub async fn read(database: &Database) -> Result<Self, String> {
        let mut facts = Self::default();
        let catalog = if matches!(database, Database::Postgres(_)) { POSTGRES } else { SQLITE };
        for row in database.rows(catalog).await? {
            let [Some(table), Some(column), Some(place), Some(is_generated)] = &row[..] else { continue };
            if is_generated == "t" {
                facts.generated.insert((table.clone(), column.clone()));
            }
            facts.columns.entry(table.clone()).or_default().insert(column.clone());
            facts.places.insert(table.clone(), place.clone());
        }
        let rows = database.rows(&facts.query()).await?;
        let texts = rows.into_iter().filter_map(|row| {
            let [hash, prefix] = <[Option<String>; 2]>::try_from(row).ok()?;
            Some((hash?.trim_end().to_owned(), prefix?.trim_end().to_owned()))
        });
        facts.good = texts.collect();
        Ok(facts)
    }

    pub fn has(&self, table: &str, column: &str) -> bool {
        self.columns.get(table).is_some_and(|columns| columns.contains(column))
    }

    /// Whether a column can be written.
    pub fn is_plain(&self, table: &str, column: &str) -> bool {
        self.has(table, column) && !self.generated.contains(&(table.to_owned(), column.to_owned()))
    }

    pub fn has_generated(&self, table: &str) -> bool {
        self.generated.iter().any(|(of, _)| of == table)
    }

    /// The name of a table that every session understands.
    pub fn place<'a>(&'a self, table: &'a str) -> &'a str {
        self.places.get(table).map_or(table, |place| place)
    }

    /// Whether a key with this credential and hash may be allowed.
    pub fn allows(&self, credential: &str, hash: &str) -> bool {
        self.good.contains(&(hash.to_owned(), credential[..8].to_owned()))
    }

    fn query(&self) -> String {
        const YES: &str = "IN ('1', 'true')";
        let mut query = format!(
            "SELECT CAST(k.key_hash AS text), CAST(k.key_prefix AS text)
            FROM api_keys k JOIN users u ON u.id = k.user_id
            WHERE CAST(k.is_active AS text) {YES} AND CAST(u.is_active AS text) {YES}"
        );
        let conditions = [
            ("api_keys", "deleted_at", "k.deleted_at IS NULL"),
            ("api_keys", "expires_at", "(k.expires_at IS NULL OR k.expires_at > '2100-01-01')"),
            ("api_keys", "allowed_ips", "k.allowed_ips IS NULL"),
            ("users", "account_locked", "COALESCE(CAST(u.account_locked AS text), '0') NOT IN ('1', 'true')"),
            (
                "api_keys",
                "budget_limit_cents",
                "(k.budget_limit_cents IS NULL OR COALESCE(k.total_cost, 0) < k.budget_limit_cents)",
            ),
            (
                "budgets",
                "limit_cents",
                "NOT EXISTS (SELECT 1 FROM budgets b WHERE b.current_usage_cents >= b.limit_cents
                    AND (b.api_key_id = k.id OR (b.api_key_id IS NULL AND b.user_id = k.user_id)))",
            ),
        ];
        for (table, column, condition) in conditions {
            if self.has(table, column) {
                query += &format!(" AND {condition}");
            }
        }
        query
    }
}
