//! Expressions for columns of any type: lists and times that a schema stores in its own way.

/// A JSON list of strings that Postgres can decode: without `\\u0000` and halves of surrogate pairs.
const LIST: &str = r#"^\s*\[\s*(S\s*(,\s*S\s*)*)?\]\s*$"#;
const STRING: &str = r#""([^"\\\x01-\x1f]|\\(["\\/bfnrt]|u(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*""#;

/// A condition: the JSON text is a list of strings, and the parameter is one of them.
pub(super) fn has_entry(text: &str, param: usize) -> String {
    let pattern = LIST.replace('S', STRING);
    format!("COALESCE(CASE WHEN {text} ~ '{pattern}' THEN CAST({text} AS jsonb) ? ${param}::text END, false)")
}

/// An array of this type, from a JSON list.
pub(super) fn array(list: &str, entry: &str) -> String {
    let elements = if matches!(entry, "json" | "jsonb") { "" } else { "_text" };
    format!(
        "CASE WHEN {list} IS NOT NULL THEN
        CAST(ARRAY(SELECT jsonb_array_elements{elements}(CAST({list} AS jsonb))) AS {entry}[]) END"
    )
}

/// A time in the form that decoding reads. It may still be no date, such as February 30, which is then another day.
const TIME: &str = r"^\d{4}-\d\d-\d\d([ Tt]([01]\d|2[0-3]):[0-5]\d:[0-5]\d([.]\d{1,9})?([Zz]|[+-]\d\d(:?\d\d(:?\d\d)?)?)?)?$";

/// Its seconds, and its offset.
const SECONDS: &str = r"^.{17}(\d\d(?:[.]\d+)?)";
const OFFSET: &str = r"^.{19}(?:[.]\d+)?([+-]\d\d(?::?\d\d)?)";

/// A column's time in UTC as a `timestamp`. It is computed from the parts of a text, because a cast of a text that is no
/// date fails the statement.
pub(super) fn instant(column: &str, kind: &str) -> String {
    match kind {
        "timestamp without time zone" => column.to_owned(),
        "timestamp with time zone" => format!("timezone('UTC', {column})"),
        "date" => format!(
            "CASE WHEN {column} > date '9999-12-31' THEN timestamp 'infinity' ELSE CAST({column} AS timestamp) END"
        ),
        "text" | "character varying" | "bpchar" | "character" | "citext" => format!(
            "(SELECT CASE WHEN lower(t) IN ('infinity', '-infinity') THEN CAST(t AS timestamp)
                WHEN t LIKE '% BC' THEN timestamp '-infinity'
                WHEN to_char(day, 'YYYY-MM-DD') = substr(t, 1, 10) THEN day + make_interval(
                    hours => CAST('0' || substr(t, 12, 2) AS int),
                    mins => CAST('0' || substr(t, 15, 2) AS int),
                    secs => COALESCE(CAST(substring(t FROM '{SECONDS}') AS double precision), 0)
                ) - COALESCE(CASE WHEN o LIKE '-%' THEN -1 ELSE 1 END * make_interval(
                    hours => CAST(substr(o, 2, 2) AS int), mins => CAST('0' || substr(o, 4, 2) AS int)
                ), interval '0') END
            FROM (SELECT t, replace(substring(t FROM '{OFFSET}'), ':', '') AS o,
                CASE WHEN t ~ '{TIME}' THEN timestamp '0001-01-01' + make_interval(
                    years => CAST(substr(t, 1, 4) AS int) - 1,
                    months => CAST(substr(t, 6, 2) AS int) - 1,
                    days => CAST(substr(t, 9, 2) AS int) - 1
                ) END AS day
                FROM (SELECT CAST({column} AS text)) AS column_text (t)) AS parts)"
        ),
        _ => "CAST(NULL AS timestamp)".to_owned(),
    }
}
