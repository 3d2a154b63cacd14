//! Events of writers: transactions that stay open, are prepared, or come from roles without rights.

use std::time::{Duration, Instant};

use rand::RngExt;
use tokio_postgres::NoTls;

use super::Event;
use crate::{
    feed_generator::{changes, database::is_conflict, schema::chance, world::World},
    harness::keystile,
};

pub async fn happen(event: Event, world: &mut World) -> Result<(), String> {
    match event {
        Event::Open => open(world).await,
        Event::Prepare | Event::PrepareAndCrash => prepare(event, world).await,
        Event::Noise => noise(world).await,
        Event::InvalidateAll => {
            let url = world.database.owners_url();
            // Without a log it says so, and fails: that is no news here.
            world.watch.note("keystile invalidate --all");
            let _ = keystile::keystile(&["invalidate", "--all", "--timeout", "1s"], &url, "");
            Ok(())
        }
        other => unreachable!("{other:?} is none of writers"),
    }
}

/// What a transaction denies that stays open: a user of whom a key is inserted meanwhile, or a key that there is.
struct Change {
    sql: String,
    user: Option<usize>,
}

async fn change(world: &mut World) -> Result<Change, String> {
    let user = world.new_user().await?;
    if chance(&mut world.rng, 25) {
        // Nobody else changes this key meanwhile.
        let credential = world.insert_key_of(user).await?;
        let hash = world.hash_of(&credential);
        let sql =
            format!("UPDATE {{api_keys}} SET {} WHERE key_hash = '{hash}'", world.schema.set_active(false));
        return Ok(Change { sql, user: None });
    }
    let mut all = vec![
        format!("UPDATE {{users}} SET is_active = '0' WHERE id = {user}"),
        format!("UPDATE {{users}} SET is_active = '0' WHERE id = {user}"),
    ];
    if !world.schema.has_foreign_key {
        all.push(format!("DELETE FROM {{users}} WHERE id = {user}"));
    }
    if world.facts.has("users", "account_locked") {
        all.push(format!("UPDATE {{users}} SET account_locked = '1' WHERE id = {user}"));
    }
    if world.facts.has("budgets", "limit_cents") {
        let next = world.next_key();
        for key in ["NULL".to_owned(), next.to_string()] {
            all.push(format!(
                "INSERT INTO {{budgets}} (id, user_id, api_key_id, limit_cents, current_usage_cents)
                VALUES ({}, {user}, {key}, 5, 5)",
                1000 + next
            ));
        }
    }
    let sql = all.swap_remove(world.rng.random_range(0..all.len()));
    Ok(Change { sql, user: Some(user) })
}

/// What others do meanwhile, and commit.
async fn others(world: &mut World, user: Option<usize>) -> Result<(), String> {
    if let Some(user) = user {
        world.insert_key_of(user).await?;
    }
    world.warm().await;
    for _ in 0..world.rng.random_range(1..4) {
        tokio::time::sleep(Duration::from_millis(world.rng.random_range(0..700))).await;
        let credential = world.insert_key_of(1).await?;
        world.warm().await;
        if chance(&mut world.rng, 50) {
            let hash = world.hash_of(&credential);
            let sql = format!(
                "UPDATE {{api_keys}} SET {} WHERE key_hash = '{hash}'",
                world.schema.set_active(false)
            );
            world.change(&sql).await?;
        }
    }
    world.warm().await;
    Ok(())
}

async fn open(world: &mut World) -> Result<(), String> {
    let change = change(world).await?;
    let script = changes::with_places(&change.sql, &world.facts);
    let url = world.database.owners_url();
    let (client, connection) =
        tokio_postgres::connect(&url, NoTls).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    world.watch.note(&format!("open: {script}"));
    let begin = if chance(&mut world.rng, 30) { "BEGIN ISOLATION LEVEL REPEATABLE READ" } else { "BEGIN" };
    let began = format!("{begin}; {script}");
    while let Err(error) = client.batch_execute(&began).await {
        if !is_conflict(&error) {
            return Err(format!("{error:?} in {began}"));
        }
        client.batch_execute("ROLLBACK").await.map_err(|error| error.to_string())?;
    }
    others(world, change.user).await?;
    world
        .commit("COMMIT of what was open", async |_| {
            client
                .batch_execute("COMMIT")
                .await
                .map_err(|error| format!("{error:?} at the commit of {began}"))
        })
        .await
}

async fn prepare(event: Event, world: &mut World) -> Result<(), String> {
    let change = change(world).await?;
    let script = changes::with_places(&change.sql, &world.facts);
    let prepare = format!("BEGIN; {script}; PREPARE TRANSACTION 'open'");
    world.commit(&prepare, async |database| database.execute(&prepare).await).await?;
    others(world, change.user).await?;
    if event == Event::PrepareAndCrash {
        let since = Instant::now();
        world
            .commit("the server crashes and starts", async |database| {
                let server = database.as_server().expect("Postgres");
                server.primary.stop();
                server.primary.revive();
                Ok(())
            })
            .await?;
        world.watch.outage(since);
        world.warm().await;
    }
    let commit = "COMMIT PREPARED 'open'";
    world.commit(commit, async |database| database.execute(commit).await).await
}

/// A role that may only log in calls everybody without pause.
async fn noise(world: &mut World) -> Result<(), String> {
    let server = world.database.as_server().expect("Postgres");
    let url = server.primary.url_as("guest", "");
    let log = "SELECT COALESCE(to_regclass('keystile_changes')::oid::text, '')";
    let log = world.database.rows(log).await?[0][0].clone().unwrap_or_default();
    let (client, connection) =
        tokio_postgres::connect(&url, NoTls).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    world.watch.note("a guest makes noise");
    for _ in 0..100 {
        let noise = format!("NOTIFY keystile_changed, '{log}'; NOTIFY keystile_confirmed, '{log}/x 1'");
        client.batch_execute(&noise).await.map_err(|error| error.to_string())?;
    }
    world.step().await
}
