//! The page of the command line: every command, as `--help` describes it.

use clap::{Arg, Command, CommandFactory};
use keystile::cli::Cli;

use super::{compare, default, help, table, variable};

/// Commands with pages of their own for their settings.
const OWN_PAGES: [(&str, &str); 3] =
    [("serve", "settings.md"), ("inject", "injector.md"), ("management", "management.md")];

#[test]
fn every_command_is_listed() {
    let mut cli = Cli::command();
    cli.build();
    let mut sections = Vec::new();
    describe(&mut cli, "keystile", &mut sections);
    compare("docs/reference/command-line.md", &sections.join("\n\n"));
}

/// Adds a section for each command that does something itself.
fn describe(command: &mut Command, name: &str, sections: &mut Vec<String>) {
    for command in command.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let name = format!("{name} {}", command.get_name());
        if command.has_subcommands() {
            describe(command, &name, sections);
        } else {
            sections.push(section(command, &name));
        }
    }
}

fn section(command: &mut Command, name: &str) -> String {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let about = command.get_about().expect("every command has a description");
    let mut parts = vec![format!("## {name}"), format!("{about}."), format!("```text\n{usage}\n```")];
    if let Some((_, page)) = OWN_PAGES.iter().find(|(own, _)| *own == command.get_name()) {
        parts.push(format!("Its settings: [{page}]({page})."));
        return parts.join("\n\n");
    }
    let is_of_database = |argument: &&Arg| argument.get_help_heading() == Some("Database");
    let own =
        command.get_arguments().filter(|argument| !is_of_database(argument) && argument.get_id() != "help");
    let rows: Vec<_> = own.map(row).collect();
    if !rows.is_empty() {
        let head = "| argument | variable | default | meaning |\n|---|---|---|---|";
        parts.push(table(head, rows.into_iter()));
    }
    if command.get_arguments().any(|argument| is_of_database(&argument)) {
        parts.push("It also takes the [settings of the database](settings.md#database).".to_owned());
    }
    parts.join("\n\n")
}

fn row(argument: &Arg) -> String {
    let short = argument.get_short().map_or(String::new(), |short| format!("`-{short}`, "));
    let variable = variable(argument).map_or(String::new(), |variable| format!("`{variable}`"));
    let takes_values = argument.get_action().takes_values();
    let default = if takes_values && !argument.get_default_values().is_empty() {
        default(argument)
    } else {
        String::new()
    };
    format!(
        "| {short}`{}` | {variable} | {default} | {}{} |",
        argument.to_string().replace('|', "\\|"),
        help(argument),
        values(argument)
    )
}

/// The values that an argument takes, unless its help names them.
fn values(argument: &Arg) -> String {
    let help = help(argument);
    let values = argument.get_possible_values();
    let names: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !argument.get_action().takes_values() || names.iter().all(|name| help.contains(name)) {
        return String::new();
    }
    let stop = if help.ends_with('.') { "" } else { "." };
    format!("{stop} Values: {}", names.join(", "))
}
