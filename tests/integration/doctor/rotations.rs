//! Rotations that do not do what their owner thinks.

use super::{Examined, after, finds};

/// Key 3 is rotated to key 4, which exists as well.
fn rotation(predecessor: u32, successor: u32, limit: u32) -> String {
    format!(
        "INSERT INTO keystile_rotations (predecessor_id, successor_id, limit_id, ends_at)
        VALUES ({predecessor}, {successor}, {limit}, '2099-01-01 00:00:00');"
    )
}

const SUCCESSOR: &str = "INSERT INTO api_keys (id, key_hash, key_prefix, user_id, is_active)
    SELECT 77, key_hash, 'ks_other', user_id, is_active FROM api_keys WHERE id = 3;";
const ENDS: &str = "UPDATE api_keys SET expires_at = '2099-01-01 00:00:00' WHERE id = 3;";

#[tokio::test]
async fn rotation_as_the_command_makes_it_is_no_finding() {
    for examined in after(&format!("{SUCCESSOR}{ENDS}{}", rotation(3, 77, 3))).await {
        let codes = examined.codes();
        assert!(!codes.iter().any(|code| code.starts_with("rotation_")), "{:#}", examined.report);
    }
}

#[tokio::test]
async fn rotated_key_without_an_end_is_found() {
    let place = "keystile_rotations.predecessor_id";
    let change = format!("{SUCCESSOR}{}", rotation(3, 77, 3));
    finds(&change, "rotation_endless", "warning", place, "3").await;
    let revoked = format!("{change} UPDATE api_keys SET is_active = false WHERE id = 3");
    for examined in after(&revoked).await {
        assert!(!examined.codes().contains(&"rotation_endless"));
    }
}

#[tokio::test]
async fn rotation_of_a_key_that_does_not_exist_is_found() {
    let change = format!("{ENDS}{}", rotation(3, 78, 3));
    finds(&change, "rotation_dangling", "note", "keystile_rotations.successor_id", "3").await;
    let change = rotation(79, 3, 79);
    finds(&change, "rotation_dangling", "note", "keystile_rotations.predecessor_id", "79").await;
}

#[tokio::test]
async fn chain_that_counts_under_two_ids_is_found() {
    let change = format!("{SUCCESSOR}{ENDS}{}{}", rotation(3, 77, 3), rotation(77, 78, 77));
    let found: Vec<Examined> = after(&change).await.into_iter().collect();
    for examined in found {
        let finding = examined.expect("rotation_chain_broken", "warning", "keystile_rotations.limit_id");
        assert_eq!(finding["examples"], serde_json::json!(["77"]));
    }
}
