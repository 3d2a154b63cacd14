//! The flags of `keystile keys update` for lists: to set one, to add entries and to remove entries.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, builder::ValueParser};

use super::create::{entry, word};
use crate::{
    record::{endpoint::Endpoint, model::ModelPattern, network::Network},
    store::{Patch, PatchError},
};

/// One list.
struct ListFlag {
    column: &'static str,
    /// Its flags: to set it, which is the one of `keys create`, to add an entry and to remove one.
    flags: [&'static str; 3],
    value: &'static str,
    noun: &'static str,
    parser: fn(&str) -> Result<String, String>,
}

macro_rules! flags {
    ($flag:literal) => {
        [$flag, concat!("add-", $flag), concat!("remove-", $flag)]
    };
}

const LISTS: [ListFlag; 8] = [
    ListFlag::new("scopes", flags!("scope"), "SCOPE", "scope", |text| word(text).map_err(str::to_owned)),
    ListFlag::new("tags", flags!("tag"), "TAG", "tag", not_empty),
    ListFlag::new("allowed_models", flags!("allowed-model"), "MODEL", "allowed model", entry::<ModelPattern>),
    ListFlag::new(
        "allowed_endpoints",
        flags!("allowed-endpoint"),
        "ENDPOINT",
        "allowed endpoint",
        entry::<Endpoint>,
    ),
    ListFlag::new(
        "allowed_ips",
        flags!("allowed-ip"),
        "ADDRESS",
        "allowed client address or network",
        entry::<Network>,
    ),
    ListFlag::new("allowed_chatbots", flags!("allowed-chatbot"), "CHATBOT", "allowed chatbot", not_empty),
    ListFlag::new("allowed_agents", flags!("allowed-agent"), "AGENT", "allowed agent", not_empty),
    ListFlag::new(
        "allowed_extract_templates",
        flags!("allowed-extract-template"),
        "TEMPLATE",
        "allowed extraction template",
        not_empty,
    ),
];

/// What the flags say about each list.
#[derive(Debug, Default)]
pub(super) struct ListFlags(Vec<ListChange>);

#[derive(Debug)]
struct ListChange {
    column: &'static str,
    set: Vec<String>,
    added: Vec<String>,
    removed: Vec<String>,
}

impl ListFlag {
    const fn new(
        column: &'static str,
        flags: [&'static str; 3],
        value: &'static str,
        noun: &'static str,
        parser: fn(&str) -> Result<String, String>,
    ) -> Self {
        Self { column, flags, value, noun, parser }
    }

    /// The flags and what they do.
    fn helps(&self) -> [(&'static str, String); 3] {
        let ([set, add, remove], noun) = (self.flags, self.noun);
        [
            (set, format!("Replace the list by this {noun}; repeatable")),
            (add, format!("Add this {noun}; repeatable")),
            (remove, format!("Remove this {noun}; repeatable")),
        ]
    }
}

impl ListFlags {
    /// The lists to set, by column.
    pub(super) fn set(&self) -> impl Iterator<Item = (&'static str, &[String])> {
        self.0.iter().filter(|list| !list.set.is_empty()).map(|list| (list.column, &list.set[..]))
    }

    /// Adds the edits to a patch.
    pub(super) fn edit(&self, patch: Patch) -> Result<Patch, PatchError> {
        self.0.iter().filter(|list| list.is_edited()).try_fold(patch, |patch, list| {
            patch.edit_list(list.column, list.added.clone(), list.removed.clone())
        })
    }

    /// The columns of the lists that are edited.
    pub(super) fn edited(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|list| list.is_edited()).map(|list| list.column)
    }
}

impl ListChange {
    fn is_edited(&self) -> bool {
        !self.added.is_empty() || !self.removed.is_empty()
    }
}

impl Args for ListFlags {
    fn augment_args(mut command: Command) -> Command {
        for list in LISTS {
            for (at, (flag, help)) in list.helps().into_iter().enumerate() {
                let heading = if at == 0 { "Lists" } else { "Entries of lists" };
                let argument = Arg::new(flag)
                    .long(flag)
                    .help(help)
                    .value_name(list.value)
                    .action(ArgAction::Append)
                    .value_parser(ValueParser::new(list.parser))
                    .help_heading(heading);
                command = command.arg(argument);
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ListFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let lists = LISTS.iter().map(|list| {
            let values =
                |flag: &str| matches.get_many::<String>(flag).into_iter().flatten().cloned().collect();
            let [set, added, removed] = list.flags.map(values);
            ListChange { column: list.column, set, added, removed }
        });
        Ok(Self(lists.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".into()) } else { Ok(text.to_owned()) }
}
