//! Colours, on terminals only.

use std::{
    env,
    io::{self, IsTerminal},
};

/// The colour of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    Red,
    Green,
    Yellow,
}

/// The beginning of coloured text. Tables count characters of no width, so the sequences of the terminal take their place
/// only in the finished table.
const MARKS: [(Colour, char, &str); 3] = [
    (Colour::Red, '\u{2061}', "\x1b[1;31m"),
    (Colour::Green, '\u{2062}', "\x1b[32m"),
    (Colour::Yellow, '\u{2063}', "\x1b[33m"),
];
const END: (char, &str) = ('\u{2064}', "\x1b[0m");

/// The colour of a cell whose first word is a state.
pub(super) fn colour_of(cell: &str) -> Option<Colour> {
    match cell.split([' ', ':', ',']).next()? {
        "deny" | "error" | "false" => Some(Colour::Red),
        "allow" | "true" => Some(Colour::Green),
        "skip" | "warning" => Some(Colour::Yellow),
        _ => None,
    }
}

/// A state with its colour.
pub(super) fn painted(cell: &str) -> String {
    let mark = colour_of(cell).and_then(|colour| MARKS.iter().find(|(of, ..)| *of == colour));
    mark.map_or_else(|| cell.to_owned(), |(_, mark, _)| format!("{mark}{cell}{}", END.0))
}

/// Replaces the marks of [`painted`], by nothing where colours are not wanted: in a pipe, or where `NO_COLOR` is set.
pub(super) fn finished(table: &str) -> String {
    let has_colours =
        io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let marks = MARKS.iter().map(|(_, mark, sequence)| (*mark, *sequence)).chain([END]);
    marks.fold(table.to_owned(), |text, (mark, sequence)| {
        text.replace(mark, if has_colours { sequence } else { "" })
    })
}

/// Names are other people's text: none of it changes colours, the direction of writing, or the state of a terminal.
pub(super) fn printable(text: &str) -> String {
    let is_format =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    text.chars().map(|c| if c.is_control() || is_format(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_has_no_colours() {
        let written = "\u{1b}[31mred\u{2061}\u{2064}\u{202e}";
        assert_eq!(printable(written), " [31mred   ");
        assert_eq!(finished(&painted(&printable(written))), " [31mred   ");
    }

    #[test]
    fn states_are_coloured_and_nothing_else() {
        for (cell, colour) in [
            ("deny: expired", Some(Colour::Red)),
            ("deny, shadowed", Some(Colour::Red)),
            ("allow", Some(Colour::Green)),
            ("skip", Some(Colour::Yellow)),
            ("pass", None),
            ("denying", None),
            ("", None),
        ] {
            assert_eq!(colour_of(cell), colour, "{cell}");
        }
    }
}
