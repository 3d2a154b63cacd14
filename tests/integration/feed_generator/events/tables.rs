//! Events that are statements: migrations of the application's, and what is done to Keystile's triggers and log.

use rand::{RngExt, seq::IndexedRandom};

use super::{Aftermath, Event};
use crate::feed_generator::{
    changes,
    schema::{Layout, chance},
    world::World,
};

pub async fn happen(event: Event, world: &mut World) -> Result<Aftermath, String> {
    let is_postgres = world.schema.is_postgres;
    let both = |sql: &str| sql.to_owned();
    let (sql, aftermath) = match event {
        Event::Add(addition) => (world.schema.add(addition), Aftermath::Lasting),
        Event::AddGenerated => (added_expiry(is_postgres), Aftermath::Lasting),
        // Everybody is locked by this alone.
        Event::AddDenying => {
            (both("ALTER TABLE users ADD COLUMN account_locked smallint DEFAULT 1"), Aftermath::Lasting)
        }
        Event::RenameColumn => return rename_column(world).await,
        Event::DropColumn => (both("ALTER TABLE api_keys DROP COLUMN deleted_at"), Aftermath::Lasting),
        Event::Retype => (retype(world), Aftermath::Passing),
        Event::MoveTable => (move_tables(world, &["api_keys"]), Aftermath::Lasting),
        Event::MoveAll => (move_tables(world, &["api_keys", "users"]), Aftermath::Lasting),
        Event::SwapTable => (swap_table(world).await?, Aftermath::Lasting),
        Event::View => {
            world.schema.is_view = true;
            world.mends.push("DROP VIEW api_keys; ALTER TABLE kept_keys RENAME TO api_keys".into());
            let sql = "BEGIN; ALTER TABLE api_keys RENAME TO kept_keys;
                CREATE VIEW api_keys AS SELECT * FROM kept_keys; COMMIT";
            (both(sql), Aftermath::Lasting)
        }
        Event::Rewrite => {
            for table in ["api_keys", "users", "keystile_changes"] {
                let sql = format!("VACUUM FULL {table}");
                world.commit(&sql, async |database| database.execute(&sql).await).await?;
            }
            return Ok(Aftermath::Passing);
        }
        Event::NewChild => (
            both(
                "CREATE TABLE users_late () INHERITS (users);
                WITH moved AS (DELETE FROM ONLY users WHERE id > 0 RETURNING *)
                INSERT INTO users_late SELECT * FROM moved",
            ),
            Aftermath::Lasting,
        ),
        Event::Disinherit => {
            world.schema.keys = Layout::Plain;
            (both("ALTER TABLE api_keys_child NO INHERIT api_keys"), Aftermath::Lasting)
        }
        Event::Detach => {
            let sql = "ALTER TABLE api_keys DETACH PARTITION api_keys_a";
            world.schema.keys = Layout::Plain;
            (both(sql), Aftermath::Lasting)
        }
        Event::Attach => (
            both(
                "ALTER TABLE api_keys DETACH PARTITION api_keys_b;
                CREATE TABLE api_keys_new (LIKE api_keys INCLUDING DEFAULTS);
                INSERT INTO api_keys_new TABLE api_keys_b;
                ALTER TABLE api_keys ATTACH PARTITION api_keys_new FOR VALUES FROM (6) TO (12);
                DROP TABLE api_keys_b; ALTER TABLE api_keys_new RENAME TO api_keys_b",
            ),
            Aftermath::Lasting,
        ),
        Event::Truncate => (both("TRUNCATE api_keys"), Aftermath::Passing),
        Event::TruncatePart => {
            let part = ["a", "b", "c"].choose(&mut world.rng).unwrap();
            (format!("TRUNCATE api_keys_{part}"), Aftermath::Passing)
        }
        _ => return harm(event, world).await,
    };
    world.commit(&sql, async |database| database.execute(&sql).await).await?;
    Ok(aftermath)
}

/// Other types for columns that triggers and look-ups read, under sessions that have read the old ones.
fn retype(world: &mut World) -> String {
    let schema = &world.schema;
    let mut all = vec![
        "ALTER TABLE api_keys ALTER name TYPE varchar(300), ALTER key_prefix TYPE varchar(20)",
        "ALTER TABLE api_keys ALTER key_prefix TYPE text, ALTER key_hash TYPE text",
        "ALTER TABLE users ALTER email TYPE varchar(300)",
    ];
    if schema.keys != Layout::Ranges {
        all.push("ALTER TABLE api_keys ALTER id TYPE numeric, ALTER user_id TYPE bigint");
    }
    if schema.users != Layout::Ranges && !schema.has_foreign_key {
        all.push("ALTER TABLE users ALTER id TYPE bigint");
    }
    if world.facts.is_plain("api_keys", "deleted_at") {
        all.push("ALTER TABLE api_keys ALTER deleted_at TYPE timestamptz");
    }
    (*all.choose(&mut world.rng).unwrap()).to_owned()
}

fn added_expiry(is_postgres: bool) -> String {
    let (literal, how) =
        if is_postgres { ("timestamp '2020-01-01'", "STORED") } else { ("'2020-01-01 00:00:00'", "VIRTUAL") };
    format!(
        "ALTER TABLE api_keys ADD COLUMN expires_at timestamp
        GENERATED ALWAYS AS (CASE WHEN name = 'ended' THEN {literal} END) {how}"
    )
}

/// A column gets another name, is written under it, and gets its own name back: that alone denies a key.
async fn rename_column(world: &mut World) -> Result<Aftermath, String> {
    let rename = |from: &str, to: &str| format!("ALTER TABLE api_keys RENAME COLUMN {from} TO {to}");
    let away = rename("deleted_at", "removed_at");
    world.commit(&away, async |database| database.execute(&away).await).await?;
    world.warm().await;
    let hash = world.victim().await?;
    world
        .change(&format!(
            "UPDATE {{api_keys}} SET removed_at = '2026-01-01 00:00:00' WHERE key_hash = '{hash}'"
        ))
        .await?;
    tokio::time::sleep(std::time::Duration::from_millis(world.rng.random_range(0..1500))).await;
    let back = rename("removed_at", "deleted_at");
    world.commit(&back, async |database| database.execute(&back).await).await?;
    Ok(Aftermath::Lasting)
}

/// Sessions that begin from now on look in the new schema first.
fn move_tables(world: &World, tables: &[&str]) -> String {
    let old = world.schema.namespace.map_or(String::new(), |namespace| format!("{namespace}, "));
    let moves: String = tables
        .iter()
        .map(|table| format!("ALTER TABLE {} SET SCHEMA moved;", world.facts.place(table)))
        .collect();
    format!(
        "CREATE SCHEMA IF NOT EXISTS moved; GRANT USAGE ON SCHEMA moved TO reader, app; {moves}
        ALTER DATABASE postgres SET search_path = moved, {old}public;
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
}

/// The table is made anew, filled and renamed, as tools for migrations do.
async fn swap_table(world: &mut World) -> Result<String, String> {
    if world.schema.is_postgres {
        return Ok("BEGIN; ALTER TABLE api_keys RENAME TO kept_keys;
            CREATE TABLE api_keys (LIKE kept_keys INCLUDING ALL);
            INSERT INTO api_keys TABLE kept_keys; DROP TABLE kept_keys; COMMIT"
            .into());
    }
    let made = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'api_keys'";
    let made = world.database.rows(made).await?[0][0].clone().unwrap_or_default();
    let new = made.replacen("api_keys", "new_keys", 1).replace('"', "");
    Ok(format!(
        "PRAGMA foreign_keys = off; BEGIN IMMEDIATE; {new}; INSERT INTO new_keys SELECT * FROM api_keys;
        DROP TABLE api_keys; ALTER TABLE new_keys RENAME TO api_keys;
        CREATE INDEX on_prefix ON api_keys (key_prefix); COMMIT"
    ))
}

/// What is done to what Keystile has put there.
async fn harm(event: Event, world: &mut World) -> Result<Aftermath, String> {
    let is_postgres = world.schema.is_postgres;
    let table = *["api_keys", "users"].choose(&mut world.rng).unwrap();
    let needs_log = [Event::DropLog, Event::EmptyLog, Event::SwapLog, Event::HideRows, Event::TakeRights]
        .contains(&event);
    // An earlier event may have dropped it.
    if needs_log && world.database.rows("SELECT 1 FROM keystile_changes LIMIT 1").await.is_err() {
        return Ok(Aftermath::Lasting);
    }
    let (sql, aftermath) = match event {
        Event::DisableTriggers => (format!("ALTER TABLE {table} DISABLE TRIGGER USER"), Aftermath::Lasting),
        Event::ReplicaTriggers => {
            (on_each_trigger(table, "ALTER TABLE %s ENABLE REPLICA TRIGGER %I", false), Aftermath::Lasting)
        }
        Event::DropTriggers if is_postgres => {
            (on_each_trigger(table, "DROP TRIGGER %2$I ON %1$s", true), Aftermath::Lasting)
        }
        Event::DropTriggers => {
            let names =
                format!("SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = '{table}'");
            let names = world.database.rows(&names).await?;
            let name = names.choose(&mut world.rng).and_then(|row| row[0].clone());
            (name.map_or(String::new(), |name| format!("DROP TRIGGER {name}")), Aftermath::Lasting)
        }
        Event::DropLog if is_postgres => ("DROP TABLE keystile_changes CASCADE".into(), Aftermath::Lasting),
        Event::DropLog => {
            // No trigger writes any longer: those of SQLite fail without their table.
            let names = "SELECT name FROM sqlite_schema WHERE type = 'trigger'";
            let names = world.database.rows(names).await?;
            let drops = names.into_iter().flatten().flatten().map(|name| format!("DROP TRIGGER {name};"));
            (drops.collect::<String>() + "DROP TABLE keystile_changes", Aftermath::Lasting)
        }
        Event::EmptyLog => {
            let truncate = is_postgres && chance(&mut world.rng, 50);
            let sql = if truncate { "TRUNCATE keystile_changes" } else { "DELETE FROM keystile_changes" };
            (sql.into(), Aftermath::Passing)
        }
        Event::SwapLog => (
            "BEGIN; ALTER TABLE keystile_changes RENAME TO kept_changes;
            CREATE TABLE keystile_changes (LIKE kept_changes INCLUDING ALL); COMMIT"
                .into(),
            Aftermath::Lasting,
        ),
        Event::HideRows => {
            world.mends.push("ALTER TABLE IF EXISTS keystile_changes DISABLE ROW LEVEL SECURITY".into());
            ("ALTER TABLE keystile_changes ENABLE ROW LEVEL SECURITY".into(), Aftermath::Lasting)
        }
        Event::TakeRights => {
            world.mends.push("GRANT ALL ON keystile_changes TO reader".into());
            ("REVOKE ALL ON keystile_changes FROM reader".into(), Aftermath::Lasting)
        }
        other => unreachable!("{other:?} is no statement"),
    };
    if event == Event::DropLog && is_postgres && chance(&mut world.rng, 50) {
        // With a change in the same transaction, which the trigger must not make fail.
        let hash = world.victim().await?;
        let deny = changes::denials(&world.schema, &world.facts, &hash)
            .swap_remove(0)
            .replace("{api_keys}", "api_keys");
        let sql = format!("BEGIN; {sql}; {deny}; COMMIT");
        world.commit(&sql, async |database| database.execute(&sql).await).await?;
        return Ok(aftermath);
    }
    world.commit(&sql, async |database| database.execute(&sql).await).await?;
    Ok(aftermath)
}

/// Runs a statement for every trigger of a table, or for some of them.
fn on_each_trigger(table: &str, statement: &str, only_first: bool) -> String {
    let limit = if only_first { "ORDER BY tgname LIMIT 1" } else { "" };
    format!(
        "DO $do$ DECLARE t record; BEGIN
            FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = '{table}'::regclass AND NOT tgisinternal
                AND tgname LIKE 'keystile%' {limit} LOOP
                EXECUTE format('{statement}', '{table}', t.tgname);
            END LOOP; END $do$"
    )
}
