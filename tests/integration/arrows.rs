//! The structure of the source: no circles, and arrows that point down only.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, ItemUse, UseTree, Visibility,
    visit::{self, Visit},
};

/// The top modules, from the ground up. A module may use those of its own line and of the lines before it.
const LAYERS: &[&[&str]] = &[
    &["attributes", "credential", "decision", "limits", "policy", "proof", "record"],
    &["clock", "config", "core_dumps", "dependencies", "metrics", "telemetry", "version"],
    &[
        "addresses",
        "bounds",
        "cache",
        "findings",
        "health",
        "http_server",
        "resilience",
        "tcp_listener",
        "tls",
    ],
    &["redis", "revocation", "usage"],
    &["limiter", "store", "verifier"],
    &["authorizer", "explanation", "proof_writer"],
    &["admin", "envoy_config", "ext_authz", "injector", "management_api"],
    &["serve"],
    &["cli"],
];

/// A module by its path below the crate: `["store", "memory"]`.
type Module = Vec<String>;

struct Tree {
    files: BTreeMap<Module, PathBuf>,
    arrows: BTreeMap<Module, BTreeSet<Module>>,
}

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = BTreeMap::new();
        find(&root, &mut Vec::new(), &mut files);
        let mut arrows = BTreeMap::new();
        for (module, path) in &files {
            let source = std::fs::read_to_string(path).unwrap();
            arrows.insert(module.clone(), arrows_of(module, &source, &files));
        }
        Self { files, arrows }
    }

    /// A way from a module back to itself, if there is one.
    fn circle<'a>(&'a self, name: impl Fn(&'a Module) -> Module) -> Option<Vec<Module>> {
        let mut edges: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (from, to) in self.arrows.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
            let (from, to) = (name(from), name(to));
            if from != to {
                edges.entry(from).or_default().insert(to);
            }
        }
        circle(&edges)
    }
}

fn circle(edges: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut done = BTreeSet::new();
    let mut path = Vec::new();
    edges.keys().find_map(|start| follow(start, edges, &mut path, &mut done))
}

fn follow(
    module: &Module,
    edges: &BTreeMap<Module, BTreeSet<Module>>,
    path: &mut Vec<Module>,
    done: &mut BTreeSet<Module>,
) -> Option<Vec<Module>> {
    if let Some(at) = path.iter().position(|before| before == module) {
        return Some(path[at..].to_vec());
    }
    if !done.insert(module.clone()) {
        return None;
    }
    path.push(module.clone());
    let found = edges.get(module).into_iter().flatten().find_map(|next| follow(next, edges, path, done));
    path.pop();
    found
}

/// The files below `folder` that are not tests.
fn find(folder: &Path, above: &mut Module, files: &mut BTreeMap<Module, PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let is_root = above.is_empty() && ["lib", "main"].contains(&&*name);
        if name == "tests" || is_root {
            continue;
        }
        above.push(name);
        if path.is_dir() {
            find(&path, above, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(above.clone(), path);
        }
        above.pop();
    }
}

/// The modules that a file uses. A parent that publishes an item of its child does not use it.
fn arrows_of(module: &Module, source: &str, files: &BTreeMap<Module, PathBuf>) -> BTreeSet<Module> {
    let file = syn::parse_file(source).unwrap_or_else(|error| panic!("{module:?}: {error}"));
    let mut paths = Paths { found: Vec::new() };
    paths.visit_file(&file);
    let targets = paths.found.iter().filter_map(|path| resolve(module, path, files));
    targets.filter(|target| target != module).collect()
}

/// Collects the paths of a file that are not in its tests.
struct Paths {
    found: Vec<Vec<String>>,
}

impl Visit<'_> for Paths {
    fn visit_item(&mut self, item: &Item) {
        let is_test = match item {
            Item::Mod(ItemMod { attrs, .. }) | Item::Use(ItemUse { attrs, .. }) => {
                attrs.iter().any(is_cfg_test)
            }
            _ => false,
        };
        if !is_test {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        if matches!(item.vis, Visibility::Inherited) {
            self.expand(&item.tree, &mut Vec::new());
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>();
        if names.len() > 1 {
            self.found.push(names);
        }
        visit::visit_path(self, path);
    }
}

impl Paths {
    fn expand(&mut self, tree: &UseTree, above: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                above.push(path.ident.to_string());
                self.expand(&path.tree, above);
                above.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.expand(tree, above)),
            UseTree::Name(name) => self.found.push([&above[..], &[name.ident.to_string()]].concat()),
            UseTree::Rename(name) => self.found.push([&above[..], &[name.ident.to_string()]].concat()),
            UseTree::Glob(_) => self.found.push(above.clone()),
        }
    }
}

fn is_cfg_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<syn::Path>().is_ok_and(|argument| argument.is_ident("test"))
}

/// The file that has the item at a path, as seen from a module; none for an item of another crate.
fn resolve(module: &Module, path: &[String], files: &BTreeMap<Module, PathBuf>) -> Option<Module> {
    let ups = path.iter().take_while(|name| *name == "super").count();
    let (mut at, rest) = match path.first()?.as_str() {
        "crate" => (Module::new(), &path[1..]),
        "self" => (module.clone(), &path[1..]),
        "super" => (module[..module.len() - ups].to_vec(), &path[ups..]),
        first if files.contains_key(&[&module[..], &[first.to_owned()]].concat()) => (module.clone(), path),
        _ => return None,
    };
    for name in rest {
        let below = [&at[..], std::slice::from_ref(name)].concat();
        if !files.contains_key(&below) {
            break;
        }
        at = below;
    }
    (!at.is_empty()).then_some(at)
}

fn layer(module: &Module) -> usize {
    let of = |names: &&[&str]| names.contains(&&*module[0]);
    LAYERS.iter().position(of).unwrap_or_else(|| panic!("{} has no layer", module[0]))
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let tree = Tree::read();
    assert!(tree.files.len() > 100, "the source is found");
    assert_eq!(tree.circle(Module::clone), None);
}

#[test]
fn no_top_modules_use_each_other_in_a_circle() {
    assert_eq!(Tree::read().circle(|module| vec![module[0].clone()]), None);
}

#[test]
fn arrows_point_down() {
    let tree = Tree::read();
    let arrows = tree.arrows.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to)));
    let up: Vec<_> = arrows.filter(|(from, to)| layer(from) < layer(to)).collect();
    assert!(up.is_empty(), "{up:?}");
    let names: BTreeSet<_> = tree.files.keys().map(|module| &*module[0]).collect();
    assert_eq!(names, LAYERS.iter().copied().flatten().copied().collect(), "each layer has its modules");
}

#[test]
fn circle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let files = ["a", "b", "c"].map(|name| (module(name), PathBuf::new())).into();
    let uses = |name: &str, source: &str| (module(name), arrows_of(&module(name), source, &files));
    let edges = [
        uses("a", "use crate::b::{self, B}; fn f() {}"),
        uses("b", "fn f(c: crate::c::C) {}"),
        uses("c", "#[cfg(test)] mod tests { use crate::a::A; }"),
    ];
    assert_eq!(circle(&edges.clone().into()), None);
    let closed = [edges[0].clone(), edges[1].clone(), uses("c", "fn f() { crate::a::f(); }")];
    assert_eq!(circle(&closed.into()), Some(vec![module("a"), module("b"), module("c")]));
}
