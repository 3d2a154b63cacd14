//! Decodes the chain of a key. A look-up selects it as one JSON value in the key's row, so that it is one statement.

use std::collections::BTreeMap;

use super::{
    timestamp,
    value::{self, Expectation},
};
use crate::{
    record::{Chain, ChainMember, KeyId, Rotation},
    store::SqlValue,
};

/// The first key of the chain, and the chain of a key. The JSON value is an array with an array of texts for each rotation of the chain, which are the ids of the
/// predecessor, the successor and the first key, the time of the rotation, and what the two keys have spent.
///
/// A chain that cannot be read denies the key: what it may spend is unknown.
pub(super) fn decode(json: &str, key: KeyId) -> Result<(KeyId, Option<Box<Chain>>), Expectation> {
    let rows: Vec<[SqlValue; 6]> = serde_json::from_str(json).map_err(|_| "JSON")?;
    if rows.is_empty() {
        return Ok((key, None));
    }
    let (mut limit_id, mut chain) = (key, Box::<Chain>::default());
    let mut others = BTreeMap::new();
    for [predecessor, successor, first, rotated_at, predecessor_spent, successor_spent] in rows {
        let rotated_at = rotated_at.and_then(|at| timestamp::timestamp(&at).ok());
        let (predecessor, successor) = (id(predecessor)?, id(successor)?);
        limit_id = id(first)?;
        if predecessor == key {
            chain.successor = Some(Rotation { key: successor, rotated_at });
        }
        if successor == key {
            chain.predecessor = Some(Rotation { key: predecessor, rotated_at });
        }
        for (id, spent) in [(predecessor, predecessor_spent), (successor, successor_spent)] {
            let spent_cents = spent.as_deref().map(value::number).transpose()?.unwrap_or(0.0);
            others.insert(id, ChainMember { id, spent_cents });
        }
    }
    others.remove(&key);
    chain.others = others.into_values().collect();
    Ok((limit_id, Some(chain)))
}

fn id(text: SqlValue) -> Result<KeyId, Expectation> {
    value::integer(&text.ok_or("an id")?).map(KeyId)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const KEY: KeyId = KeyId(8);

    #[test]
    fn key_in_the_middle_of_a_chain_knows_the_first_and_what_the_others_spent() {
        let json = r#"[["8","9","7","2026-02-01T00:00:00","10.5",null],
            ["7","8","7","2026-01-01 00:00:00","2","10.5"]]"#;
        let rotation = |key, rotated_at| Some(Rotation { key: KeyId(key), rotated_at: Some(rotated_at) });
        let chain = Chain {
            others: vec![
                ChainMember { id: KeyId(7), spent_cents: 2.0 },
                ChainMember { id: KeyId(9), spent_cents: 0.0 },
            ],
            successor: rotation(9, datetime!(2026-02-01 00:00 UTC)),
            predecessor: rotation(7, datetime!(2026-01-01 00:00 UTC)),
        };
        assert_eq!(decode(json, KEY), Ok((KeyId(7), Some(Box::new(chain.clone())))));
        assert!((chain.spent_by_others() - 2.0).abs() < f64::EPSILON);
    }

    #[test]
    fn key_without_rotations_is_alone() {
        assert_eq!(decode("[]", KEY), Ok((KEY, None)));
    }

    #[test]
    fn chain_that_cannot_be_read_is_an_error() {
        for bad in [
            "",
            "null",
            r#"[["8","9","7","2026-02-01","NaN",null]]"#,
            r#"[["8","9",null,"2026-02-01",null,null]]"#,
            r#"[["8","x","7","2026-02-01",null,null]]"#,
            r#"[["8","9","7"]]"#,
        ] {
            assert!(decode(bad, KEY).is_err(), "{bad}");
        }
        let undated = decode(r#"[["8","9","8","soon",null,null]]"#, KEY).expect("decodes").1;
        assert_eq!(undated.expect("a chain").successor, Some(Rotation { key: KeyId(9), rotated_at: None }));
    }
}
