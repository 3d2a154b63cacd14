//! Events of servers: restored, promoted, loaded, crashed and cut off.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::Event;
use crate::{
    feed_generator::{changes, schema::chance, world::World},
    harness::{
        cluster::{Cluster, Restored},
        proxy::Wire,
    },
};

/// Transactions that change nothing.
const MANY: &str =
    "DO $do$ BEGIN FOR i IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $do$";

pub async fn happen(event: Event, world: &mut World) -> Result<(), String> {
    match event {
        Event::Restore => restore(world, Restored::Snapshot).await,
        Event::Recover => restore(world, Restored::PointInTime).await,
        Event::Promote if world.reads_replica() => promote_replica(world).await,
        Event::Promote => promote(world).await,
        Event::LoadDump => load_dump(world).await,
        Event::LoadForeignDump => load_foreign_dump(world).await,
        Event::Crash => crash(world).await,
        Event::EndSessions => {
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND datname = current_database()";
            world.commit(sql, async |database| database.execute(sql).await).await
        }
        Event::CutWire => cut_wire(world).await,
        Event::PauseReplay => pause_replay(world).await,
        Event::RestartInstance => {
            world.watch.note("an instance is replaced");
            world.restart_instance().await
        }
        other => unreachable!("{other:?} is none of servers"),
    }
}

/// What is done with the new history before an instance reconnects: a script, perhaps empty.
async fn first_change(world: &mut World) -> Result<String, String> {
    let hash = world.victim().await?;
    let all = changes::denials(&world.schema, &world.facts, &hash);
    let sql = all[world.rng.random_range(0..all.len())].clone();
    let sql = changes::in_a_session(&sql, true, &world.facts, &mut world.rng);
    Ok(if chance(&mut world.rng, 70) { sql } else { String::new() })
}

/// Transactions that the other history does not have.
async fn lost_changes(world: &mut World) -> Result<(), String> {
    if chance(&mut world.rng, 50) {
        world.watch.note("300 transactions");
        world.database.execute(&MANY.replace("{count}", "300")).await?;
    }
    for _ in 0..world.rng.random_range(0..3) {
        world.step().await?;
    }
    tokio::time::sleep(Duration::from_millis(world.rng.random_range(0..1200))).await;
    world.warm().await;
    Ok(())
}

async fn restore(world: &mut World, restored: Restored) -> Result<(), String> {
    let is_harmed = world.is_harmed;
    let reuse = chance(&mut world.rng, 40);
    let server = world.database.as_server().expect("Postgres");
    if server.backups.is_empty() || !reuse {
        let backup = server.primary.backup();
        server.backups.push((backup, is_harmed));
        world.watch.note("a backup is taken");
    }
    lost_changes(world).await?;
    let change = first_change(world).await?;
    let more = if chance(&mut world.rng, 30) { MANY.replace("{count}", "600") } else { String::new() };
    let since = Instant::now();
    let watch = std::sync::Arc::clone(&world.watch);
    world
        .commit(&format!("restored: {restored:?}; {change}; {more}"), async |database| {
            let server = database.as_server().expect("Postgres");
            server.proxy.cut();
            let (backup, _) = server.backups.last().expect("taken above");
            server.primary.restore(backup, restored);
            // Of a key that there may not have been then.
            let _ = database.execute(&change).await;
            database.execute(&more).await?;
            database.as_server().expect("Postgres").proxy.mend();
            watch.outage(since);
            Ok(())
        })
        .await?;
    let server = world.database.as_server().expect("Postgres");
    world.is_harmed = server.backups.last().is_some_and(|(_, is_harmed)| *is_harmed);
    Ok(())
}

async fn promote(world: &mut World) -> Result<(), String> {
    let server = world.database.as_server().expect("Postgres");
    let mut standby = server.primary.standby();
    standby.catch_up_with(&server.primary).await;
    world.watch.note("a standby is made");
    if chance(&mut world.rng, 80) {
        // What is committed from now on never reaches it.
        standby.stop();
        lost_changes(world).await?;
        standby.revive();
    } else {
        lost_changes(world).await?;
        let server = world.database.as_server().expect("Postgres");
        standby.catch_up_with(&server.primary).await;
    }
    let change = first_change(world).await?;
    let since = Instant::now();
    let watch = std::sync::Arc::clone(&world.watch);
    world
        .commit(&format!("promoted; {change}"), async |database| {
            let server = database.as_server().expect("Postgres");
            server.proxy.cut();
            server.primary.stop();
            standby.promote().await;
            server.primary = standby;
            server.backups.clear();
            let _ = database.execute(&change).await;
            let server = database.as_server().expect("Postgres");
            server.proxy.lead_to(server.primary.address());
            server.proxy.mend();
            watch.outage(since);
            Ok(())
        })
        .await
}

/// What instances read becomes the primary, and nobody else writes.
async fn promote_replica(world: &mut World) -> Result<(), String> {
    world
        .commit("the standby that is read is promoted", async |database| {
            let server = database.as_server().expect("Postgres");
            let replica = server.replica.take().expect("there is one");
            replica.catch_up_with(&server.primary).await;
            replica.promote().await;
            server.primary = replica;
            Ok(())
        })
        .await?;
    world.never_up = false;
    Ok(())
}

async fn load_dump(world: &mut World) -> Result<(), String> {
    let server = world.database.as_server().expect("Postgres");
    let dump = server.primary.dump();
    let is_harmed = world.is_harmed;
    world.watch.note("a dump is made");
    lost_changes(world).await?;
    // So that the dump denies what is allowed now.
    let pardon = changes::pardon(&world.schema, &world.facts);
    world.change(&pardon).await?;
    world.warm().await;
    world
        .commit("the dump is loaded", async |database| {
            database.as_server().expect("Postgres").primary.load(&dump);
            Ok(())
        })
        .await?;
    world.is_harmed = is_harmed;
    Ok(())
}

async fn load_foreign_dump(world: &mut World) -> Result<(), String> {
    let other = Cluster::start();
    other.execute("CREATE ROLE reader LOGIN; CREATE ROLE app LOGIN; CREATE ROLE guest LOGIN").await;
    let server = world.database.as_server().expect("Postgres");
    other.load(&server.primary.dump());
    other.execute(&MANY.replace("{count}", "3000")).await;
    let hash = world.victim().await?;
    let place = world.facts.place("api_keys").to_owned();
    let active = world.schema.set_active(false);
    other.execute(&format!("UPDATE {place} SET {active} WHERE key_hash = '{hash}'")).await;
    if chance(&mut world.rng, 50) {
        // As a migration writes it: everything changed.
        let log = place.rsplit_once('.').map_or("public", |(schema, _)| schema);
        let log = format!("{log}.keystile_changes");
        let exists = other.value(&format!("SELECT to_regclass('{log}') IS NOT NULL")).await;
        if exists.as_deref() == Some("t") {
            other.execute(&format!("INSERT INTO {log} (prefix) VALUES (NULL)")).await;
        }
    }
    let dump = other.dump();
    world
        .commit("a dump of another cluster is loaded", async |database| {
            database.as_server().expect("Postgres").primary.load(&dump);
            Ok(())
        })
        .await
}

async fn crash(world: &mut World) -> Result<(), String> {
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
    Ok(())
}

async fn cut_wire(world: &mut World) -> Result<(), String> {
    let since = Instant::now();
    let wires = [Wire::Cut, Wire::Refusing, Wire::Hanging, Wire::Slow(Duration::from_millis(700))];
    let wire = wires[world.rng.random_range(0..wires.len())];
    world.watch.note(&format!("the wire is {wire:?}"));
    world.database.as_server().expect("Postgres").proxy.set(wire);
    tokio::time::sleep(Duration::from_millis(world.rng.random_range(0..2500))).await;
    world.step().await?;
    world.database.as_server().expect("Postgres").proxy.mend();
    world.watch.note("the wire is whole");
    world.watch.outage(since);
    Ok(())
}

async fn pause_replay(world: &mut World) -> Result<(), String> {
    world.watch.note("replay is paused");
    if let Some(replica) = &world.database.as_server().expect("Postgres").replica {
        replica.pause_replay().await;
    }
    world.step().await?;
    tokio::time::sleep(Duration::from_millis(world.rng.random_range(0..4000))).await;
    world.watch.note("replay goes on");
    if let Some(replica) = &world.database.as_server().expect("Postgres").replica {
        replica.resume_replay().await;
    }
    Ok(())
}
