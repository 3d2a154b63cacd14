//! Events of SQLite files.

use std::{path::Path, time::Duration};

use rand::RngExt;
use rusqlite::backup::Backup;

use super::Event;
use crate::feed_generator::{database::open, schema::chance, world::World};

pub async fn happen(event: Event, world: &mut World) -> Result<(), String> {
    if event == Event::Vacuum {
        return world.commit("VACUUM", async |database| database.execute("VACUUM").await).await;
    }
    let is_harmed = world.is_harmed;
    let file = world.database.as_file().expect("a file");
    let copy = file.new_path();
    let text = copy.to_str().expect("UTF-8").to_owned();
    file.open()?.execute("VACUUM INTO ?1", [&text]).map_err(|error| error.to_string())?;
    world.watch.note("a copy is made");
    for _ in 0..world.rng.random_range(0..3) {
        world.step().await?;
    }
    if chance(&mut world.rng, 50) {
        let sql = "UPDATE {api_keys} SET name = name || '.'";
        for _ in 0..3 {
            world.change(sql).await?;
        }
    }
    if chance(&mut world.rng, 60) {
        let hash = world.victim().await?;
        let sql = format!("UPDATE api_keys SET {} WHERE key_hash = '{hash}'", world.schema.set_active(false));
        world.watch.note(&format!("in the copy: {sql}"));
        open(&copy)?.execute_batch(&sql).map_err(|error| error.to_string())?;
    }
    tokio::time::sleep(Duration::from_millis(world.rng.random_range(0..900))).await;
    world.warm().await;
    world
        .commit(&format!("the copy takes the file's place: {event:?}"), async |database| {
            let file = database.as_file().expect("a file");
            match event {
                Event::RenameOver => file.replace_by(&copy),
                Event::RemoveAndCopy => {
                    let again = file.new_path();
                    std::fs::copy(&copy, &again).map_err(|error| error.to_string())?;
                    std::fs::remove_file(file.path()).map_err(|error| error.to_string())?;
                    file.replace_by(&again)
                }
                _ => restore_into(&copy, &file.path()),
            }
        })
        .await?;
    world.is_harmed = is_harmed;
    Ok(())
}

/// `.restore`: the pages of the copy are written into the file that is open.
fn restore_into(copy: &Path, file: &Path) -> Result<(), String> {
    let source = open(copy)?;
    let mut target = open(file)?;
    let backup = Backup::new(&source, &mut target).map_err(|error| error.to_string())?;
    backup.run_to_completion(1000, Duration::from_millis(5), None).map_err(|error| error.to_string())
}
