//! Every page says who it is for, its links lead somewhere, and the files that it names exist.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use super::file;

/// Folders that are no part of the repository.
const SKIPPED: [&str; 6] = ["target", ".git", ".tools", "corpus", "artifacts", "node_modules"];

/// Where a page may count the names of files from, besides its own folder.
const BASES: [&str; 3] = ["", "src", "tests/integration"];

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let pages = pages();
    let mut dead = Vec::new();
    for (page, text) in &pages {
        for link in links(text) {
            if let Err(reason) = follow(&pages, page, &link) {
                dead.push(format!("{}: ({link}): {reason}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
}

#[test]
fn every_file_that_a_page_names_exists() {
    let mut missing = Vec::new();
    for (page, text) in pages() {
        let folder = page.parent().unwrap().to_owned();
        let bases: Vec<_> = BASES.iter().map(PathBuf::from).chain([folder]).collect();
        for name in code_spans(&text).filter(|span| is_file_name(span)) {
            if !bases.iter().any(|base| file(base.join(&name).to_str().unwrap()).exists()) {
                missing.push(format!("{}: `{name}`", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "there is no such file:\n{}", missing.join("\n"));
}

#[test]
fn every_page_says_who_it_is_for() {
    let pages = pages().into_iter().filter(|(page, _)| page != Path::new("README.md"));
    let says = |text: &str| text.lines().nth(2).is_some_and(|line| line.starts_with("For "));
    let silent: Vec<_> = pages.filter(|(_, text)| !says(text)).map(|(page, _)| page).collect();
    assert!(
        silent.is_empty(),
        "the line below the title begins with \"For\" in every page, but not in {silent:?}"
    );
}

#[test]
fn anchors_are_those_of_github() {
    let page = "# A page\n## `keystile keys`: it's *new*\n## Same\n## Same\n```\n# no heading\n```\n";
    assert_eq!(anchors(page), ["a-page", "keystile-keys-its-new", "same", "same-1"]);
    let text = "[a](b.md#c) `[no](link)` ![d](e.png)\n```\n[no](link)\n```\n[f]: g.md\n[h](i 'title')";
    assert_eq!(links(text), ["b.md#c", "e.png", "i", "g.md"]);
}

/// Every Markdown file of the repository by its path, with its text.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = file("");
    let mut pages = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()) {
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.extend((!SKIPPED.iter().any(|skipped| name == *skipped)).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text = std::fs::read_to_string(&path).unwrap();
                pages.insert(path.strip_prefix(&root).unwrap().to_owned(), text);
            }
        }
    }
    assert!(pages.len() > 10, "{:?}", pages.keys());
    pages
}

/// The targets of all links of a page: first those in its text, then those of references.
fn links(text: &str) -> Vec<String> {
    let text = without_code(text);
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let references = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    let targets = inline.chain(references.map(|(_, target)| target));
    targets.filter_map(|target| target.split_whitespace().next()).map(str::to_owned).collect()
}

fn follow(pages: &BTreeMap<PathBuf, String>, page: &Path, link: &str) -> Result<(), String> {
    if ["https://", "http://", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
        return Ok(());
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = if path.is_empty() { page.to_owned() } else { normal(&page.parent().unwrap().join(path)) };
    if !file(target.to_str().unwrap()).exists() {
        return Err(format!("there is no {}", target.display()));
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let text = pages.get(&target).ok_or("only pages have anchors")?;
    let anchors = anchors(text);
    let is_there = anchors.iter().any(|known| known == anchor);
    is_there.then_some(()).ok_or_else(|| format!("{} has no such heading", target.display()))
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, component| {
        if component == Component::ParentDir {
            path.pop();
        } else {
            path.push(component);
        }
        path
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for line in lines_outside_fences(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let heading = heading.trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || ['-', '_', ' '].contains(c);
        let anchor: String = heading.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect();
        let same = anchors.iter().filter(|known| **known == anchor).count();
        anchors.push(if same == 0 { anchor } else { format!("{anchor}-{same}") });
    }
    anchors
}

fn lines_outside_fences(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The text less code, in which nothing is a link.
fn without_code(text: &str) -> String {
    let lines = lines_outside_fences(text).map(|line| {
        let parts = line.split('`').step_by(2);
        parts.collect::<Vec<_>>().join("`")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What stands between backticks, outside of blocks of code.
fn code_spans(text: &str) -> impl Iterator<Item = String> {
    lines_outside_fences(text).flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned)
}

/// Whether a word names a file or a folder of the repository.
fn is_file_name(word: &str) -> bool {
    let is_path = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte));
    let is_source =
        ["rs", "lua", "py", "md"].iter().any(|extension| word.ends_with(&format!(".{extension}")));
    let tops = ["src/", "tests/", "docs/", "benches/", "envoy/", "k8s/", "tools/", "demo/", "fuzz/"];
    is_path && !word.starts_with('/') && (is_source || tops.iter().any(|top| word.starts_with(top)))
}
