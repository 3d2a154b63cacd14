//! The expressions that differ by backend. The schema builds its SQL from them.

use std::time::Duration;

/// How a backend writes names, values and conditions.
pub(crate) trait Dialect: Send + Sync {
    /// A column's name in SQL. `name` is its name in lower case, `spelling` its name in the database.
    fn identifier(&self, name: &str, spelling: &str) -> String;

    /// A column's value as text, independent of the session's settings: time zone, and output of dates, bytes and
    /// fractions.
    fn as_text(&self, column: &str, kind: &str) -> String;

    /// A column's value as an integer. A value that is none must not fail the statement.
    fn as_integer(&self, column: &str, kind: &str) -> String;

    /// Whether a column of this type can be compared with a number, without an error.
    fn is_comparable(&self, kind: &str) -> bool;

    /// A column's text, compared byte for byte. The column's type or collation may consider other texts equal.
    fn bytewise(&self, column: &str) -> String;

    /// A condition: the column's text is the same, byte for byte, as the parameter of this number.
    fn is_exactly(&self, column: &str, param: usize) -> String;

    /// A condition: the column is one of these numbers. Returned with the value of parameter 1, which the condition uses.
    fn is_one_of(&self, column: &str, kind: &str, numbers: &[i64]) -> (String, String);

    /// A condition: the time in the column is less than `window` ago.
    fn is_within(&self, column: &str, kind: &str, window: Duration) -> String;

    /// A condition: the column's value is true, as [`boolean`](super::decode::value::boolean) reads it.
    fn is_true(&self, column: &str, kind: &str) -> String;

    /// A condition: the column is a list of texts, and the parameter of this number is one of them. A value that is no
    /// list must not fail the statement. Lists that only this program can decode, with `\\u0000`, count as none.
    fn has_entry(&self, column: &str, kind: &str, param: usize) -> String;

    /// A column's time in UTC, in a form that sorts by time; NULL for a value that cannot be read as one, and for a time
    /// after the year 9999. It must not fail the statement.
    fn instant(&self, column: &str, kind: &str) -> String;

    /// The parameter of this number as such a time, from the form of
    /// [`write_timestamp`](super::decode::timestamp::write_timestamp).
    fn instant_param(&self, number: usize) -> String;

    /// The type of the values of [`Dialect::instant`].
    fn instant_kind(&self) -> &'static str;

    /// The end of a SELECT that locks the rows of the table with this alias until the end of the transaction.
    fn lock_rows(&self, alias: &str) -> String;

    /// The parameter of this number, for a column of this type. For an array it is a JSON list.
    fn param(&self, number: usize, kind: &str) -> String;

    /// A timestamp as it is written, from the form of [`write_timestamp`](super::decode::timestamp::write_timestamp).
    fn timestamp(&self, written: String) -> String;

    /// Whether the type of a column bounds its integers.
    fn has_narrow_integers(&self) -> bool;

    /// An aggregate: all rows as a JSON array, with an array of these columns for each.
    fn json_rows(&self, columns: &str) -> String;
}
