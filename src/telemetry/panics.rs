//! Panics in the log: where, and why if that is part of the program. Text that is made at run time may hold a secret:
//! a slice that is out of bounds, for example, is shown with the string.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, Write},
    panic::PanicHookInfo,
};

use tracing::{dispatcher, error};

/// Logs panics of this process without text that was made at run time.
pub fn log_panics() {
    std::panic::set_hook(Box::new(log));
}

fn log(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let (place, message) = (place(info), message(info.payload()));
    let backtrace = Backtrace::capture();
    if dispatcher::has_been_set() {
        error!(thread = thread.name(), place, "panicked: {message}");
    } else {
        // A failure to write must not be a second panic, which ends the process.
        let _ = writeln!(io::stderr(), "error: panicked at {place}: {message}");
    }
    if backtrace.status() == BacktraceStatus::Captured {
        let _ = writeln!(io::stderr(), "{backtrace}");
    }
}

fn place(info: &PanicHookInfo<'_>) -> String {
    info.location().map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

/// The message, if it is part of the program.
fn message(payload: &(dyn Any + Send)) -> &'static str {
    payload.downcast_ref::<&'static str>().copied().unwrap_or("(not shown, since it may hold a secret)")
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn message_of_a_panic_is_shown_only_if_it_is_part_of_the_program() {
        let shown = |panics: fn()| message(&*catch_unwind(panics).expect_err("panics"));
        assert_eq!(shown(|| panic!("as the test wants")), "as the test wants");
        assert!(shown(|| panic!("{}", String::from("ks_secret"))).starts_with("(not shown"));
        // The standard library shows the string.
        let slice = || drop("é, a secret"[1..].to_owned());
        assert!(shown(slice).starts_with("(not shown"));
        let number = || assert_eq!("ks_secret".parse::<u8>().expect("a number"), 7);
        assert!(shown(number).starts_with("(not shown"));
    }
}
