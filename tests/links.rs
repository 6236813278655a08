//! The links, the quoted names and the layout of all pages: what a reader clicks on exists, and nothing is cut off.
//!
//! The pages in `src/docs` are read in two places. On a code host, links lead to files, by the definitions at the end of
//! each page. In the documentation that `cargo doc` builds they lead to items, by the definitions in `src/docs/links.md`,
//! which precede those of the page and therefore win. That file is generated here:
//!
//!     ECHOD_DRAW=1 cargo test --test links

#[path = "support/sources.rs"]
mod sources;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sources::{read, sources_in};

/// The pages that rustdoc includes, too.
const PAGES: [&str; 4] = ["src/docs/tour.md", "src/docs/traps.md", "src/docs/tutorial.md", "src/docs/tutorial.zh.md"];
const OTHER_PAGES: [&str; 7] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benches/README.md",
    "packaging/README.md",
    "examples/ladder/README.md",
    "examples/ladder/README.zh.md",
];
const CHINESE: [&str; 2] = ["src/docs/tutorial.zh.md", "examples/ladder/README.zh.md"];
const LINKS: &str = "src/docs/links.md";

/// The widest block that rustdoc shows without a scroll bar in a window of 1200 pixels.
const MAX_COLUMNS: usize = 85;

// ---- reading Markdown ----

/// Returns the page without its fenced blocks.
fn prose(page: &str) -> String {
    let mut inside = false;
    let lines = page.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the lines of the fenced blocks, with their numbers in the page.
fn block_lines(page: &str) -> Vec<(usize, &str)> {
    let mut inside = false;
    let mut lines = Vec::new();
    for (number, line) in page.lines().enumerate() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            lines.push((number + 1, line));
        }
    }
    lines
}

/// Returns how many columns of a terminal the line takes: Chinese characters and punctuation take two.
fn columns(line: &str) -> usize {
    let is_wide = |c: char| matches!(c, '\u{1100}'..='\u{115f}' | '\u{2e80}'..='\u{a4cf}' | '\u{ac00}'..='\u{d7a3}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe4f}' | '\u{ff00}'..='\u{ff60}');
    line.chars().map(|c| if is_wide(c) { 2 } else { 1 }).sum()
}

/// Returns the link definitions `[label]: target` of a page.
fn definitions(page: &str) -> BTreeMap<String, String> {
    let definition = |line: &str| {
        let (label, target) = line.strip_prefix('[')?.split_once("]: ")?;
        (!target.contains(' ')).then(|| (label.to_owned(), target.to_owned()))
    };
    page.lines().filter_map(definition).collect()
}

/// Returns the targets of inline links, `[text](target)`.
fn inline_targets(page: &str) -> Vec<String> {
    let prose = prose(page);
    let rests = prose.match_indices("](").map(|(at, mark)| &prose[at + mark.len()..]);
    rests.filter_map(|rest| rest.split(')').next()).map(str::to_owned).collect()
}

/// Returns the labels that the page links by, `` [`Server::run`] `` or `[T22]` or `[text][label]`.
fn used_labels(page: &str) -> Vec<String> {
    let body = prose(page);
    let body: String = body.lines().filter(|line| definitions(line).is_empty()).collect::<Vec<_>>().join("\n");
    let mut labels = Vec::new();
    for (at, _) in body.match_indices("[`") {
        let label = body[at + 1..].split(']').next().unwrap_or_default();
        let after = &body[at + 1 + label.len()..];
        if label.ends_with('`') && !after.starts_with("](") && !after.starts_with("][") {
            labels.push(label.to_owned());
        }
    }
    for (at, mark) in body.match_indices("][") {
        labels.push(body[at + mark.len()..].split(']').next().unwrap_or_default().to_owned());
    }
    labels
}

/// Returns the anchors of a page: those that a code host makes from headings, and explicit ones.
fn anchors(page: &str) -> Vec<String> {
    let headings = prose(page);
    let headings = headings.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#')));
    let explicit = page.match_indices("<a id=\"").filter_map(|(at, mark)| page[at + mark.len()..].split('"').next());
    headings.chain(explicit.map(str::to_owned)).collect()
}

/// Returns the anchor of a heading, as code hosts make it: lower case, no punctuation, hyphens for spaces.
fn slug(heading: &str) -> String {
    let mut text = String::new();
    let mut in_tag = false;
    for c in heading.trim().chars() {
        match c {
            '<' => in_tag = true,
            '>' => in_tag = false,
            _ if in_tag => {}
            ' ' => text.push('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => text.extend(c.to_lowercase()),
            _ => {}
        }
    }
    text
}

// ---- links ----

/// Returns what is wrong with a link from this page, if anything. Links to other hosts are not followed.
fn broken(page: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("data:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let folder = Path::new(page).parent().unwrap_or(Path::new(""));
    let path: PathBuf = if file.is_empty() { page.into() } else { folder.join(file) };
    if !path.exists() {
        return Some(format!("{page}: {target} does not exist"));
    }
    let anchor = anchor?;
    let there = anchors(&read(&path));
    (!there.iter().any(|known| known == anchor)).then(|| format!("{page}: {target}: no such anchor"))
}

#[test]
fn links_lead_to_files_and_anchors_that_exist() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for page in PAGES.into_iter().chain(OTHER_PAGES) {
        let text = read(page);
        let targets: Vec<String> = inline_targets(&text).into_iter().chain(definitions(&text).into_values()).collect();
        count += targets.len();
        wrong.extend(targets.iter().filter_map(|target| broken(page, target)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 100, "found only {count} links");
}

#[test]
fn every_label_is_defined_and_every_definition_used() {
    let mut wrong = Vec::new();
    for page in PAGES {
        let text = read(page);
        let (defined, used) = (definitions(&text), used_labels(&text));
        wrong.extend(
            used.iter()
                .filter(|label| !defined.contains_key(*label))
                .map(|label| format!("{page}: [{label}] leads nowhere")),
        );
        let is_used = |label: &str| used.iter().any(|used| used == label) || text.contains(&format!("[{label}]"));
        wrong.extend(
            defined.keys().filter(|label| !is_used(label)).map(|label| format!("{page}: [{label}] is not used")),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

// ---- items of the code ----

/// Returns whether this source defines the item: a function, a type, a constant, or a variant of an enum. For `A::b`, the
/// source has to mention the type, too.
fn defines(source: &str, item: &str) -> bool {
    let code = source.split("\nmod tests {").next().unwrap_or_default();
    let (owner, name) = item.rsplit_once("::").map_or((None, item), |(owner, name)| (Some(owner), name));
    let starts = |rest: &str| {
        rest.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let is_item = |line: &str| {
        let line = line.trim_start();
        let visibilities = ["pub ", "pub(super) ", "pub(crate) "];
        let line = visibilities.iter().find_map(|word| line.strip_prefix(word)).unwrap_or(line);
        ["fn ", "const ", "struct ", "enum ", "trait ", "static ", "type "]
            .iter()
            .any(|word| line.strip_prefix(word).is_some_and(starts))
    };
    let is_variant = |line: &str| {
        let rest = line.strip_prefix("    ").and_then(|line| line.strip_prefix(name));
        rest.is_some_and(|rest| rest == "," || rest == " {" || rest.starts_with('(') && rest.ends_with("),"))
    };
    let has_owner = |owner: &str| {
        let is_head =
            |line: &&str| ["impl", "pub enum", "enum", "pub trait", "trait"].iter().any(|word| line.starts_with(word));
        code.lines()
            .filter(is_head)
            .any(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == owner))
    };
    code.lines().any(|line| is_item(line) || owner.is_some() && is_variant(line)) && owner.is_none_or(has_owner)
}

/// Returns the path of an item or a page in the documentation, for a definition of a page; an error if there is none.
fn documented(label: &str, target: &str) -> Result<String, String> {
    let (file, anchor) =
        target.split_once('#').map_or((target, String::new()), |(file, anchor)| (file, format!("#{anchor}")));
    match file {
        "" | "traps.md" => return Ok(format!("crate::docs::traps{anchor}")),
        "tutorial.md" => return Ok(format!("crate::docs::tutorial{anchor}")),
        "tutorial.zh.md" => return Ok(format!("crate::docs::tutorial_zh{anchor}")),
        "tour.md" => return Ok(format!("crate::docs::tour{anchor}")),
        _ => {}
    }
    let path = file.strip_prefix("../").and_then(|path| path.strip_suffix(".rs")).filter(|path| !path.starts_with('.'));
    let path = path.ok_or_else(|| format!("[{label}] leads to {target}, which is not in the documentation"))?;
    let module = path.strip_suffix("/mod").unwrap_or(path).replace('/', "::");
    let Some(item) = label.strip_prefix('`').and_then(|label| label.strip_suffix('`')) else {
        return Ok(format!("crate::{module}"));
    };
    let source = read(format!("src/{path}.rs"));
    if !defines(&source, item) {
        return Err(format!("src/{path}.rs does not define {item}"));
    }
    match (item.split_once("::"), page_of(&source, item)) {
        // A type may have methods in other files than its own.
        (Some((owner, _)), _) => Ok(format!("crate::{}::{item}", module_of(owner).unwrap_or(module))),
        // rustdoc does not resolve the path of a private item from another module, but the item has a page.
        (None, Some((page, is_public))) if !is_public || !is_public_module(path) => {
            Ok(format!("../../{}/{page}", path.strip_suffix("/mod").unwrap_or(path)))
        }
        _ => Ok(format!("crate::{module}::{item}")),
    }
}

/// Returns whether the module of this file is public in the module page of its folder.
fn is_public_module(path: &str) -> bool {
    let Some((folder, name)) = path.rsplit_once('/').filter(|(_, name)| *name != "mod") else { return true };
    read(format!("src/{folder}/mod.rs")).contains(&format!("pub mod {name};"))
}

/// Returns the name of the documentation page of an item at the top level of this source, and whether the item is public.
fn page_of(source: &str, item: &str) -> Option<(String, bool)> {
    let kinds = [("fn ", "fn"), ("const ", "constant"), ("struct ", "struct"), ("enum ", "enum"), ("trait ", "trait")];
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let find = |line: &str| {
        let public = line.strip_prefix("pub ");
        let restricted = ["pub(super) ", "pub(crate) "].iter().find_map(|word| line.strip_prefix(word));
        let rest = public.or(restricted).unwrap_or(line);
        let (_, kind) = kinds
            .iter()
            .find(|(word, _)| rest.strip_prefix(word).and_then(|rest| rest.strip_prefix(item)).is_some_and(ends))?;
        Some((format!("{kind}.{item}.html"), public.is_some()))
    };
    source.lines().find_map(find)
}

/// Returns the module that defines this type, if exactly one does.
fn module_of(owner: &str) -> Option<String> {
    let is_definition = |line: &str| {
        let rest = ["pub struct ", "pub enum ", "pub trait "].iter().find_map(|word| line.strip_prefix(word));
        let rest = rest.and_then(|rest| rest.strip_prefix(owner));
        rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let paths = sources_in("src").into_iter().filter(|path| read(path).lines().any(is_definition));
    let modules: Vec<String> = paths
        .map(|path| {
            let path = path.with_extension("").to_string_lossy().replace('/', "::");
            let path = path.strip_prefix("src::").unwrap_or(&path).to_owned();
            path.strip_suffix("::mod").map_or(path.clone(), str::to_owned)
        })
        .collect();
    match modules.as_slice() {
        [module] => Some(module.clone()),
        _ => None,
    }
}

#[test]
fn items_exist_and_the_documentation_links_to_them() {
    let mut links: BTreeMap<String, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for page in PAGES {
        for (label, target) in definitions(&read(page)) {
            if target.contains("://") || target.ends_with(".svg") {
                continue;
            }
            match documented(&label, &target) {
                Ok(path) => match links.insert(label.clone(), path.clone()) {
                    Some(other) if other != path => {
                        wrong.push(format!("{page}: [{label}] is {path}, elsewhere {other}"))
                    }
                    _ => {}
                },
                Err(message) => wrong.push(format!("{page}: {message}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(links.len() > 40, "found only {} links", links.len());
    let lines: String = links.iter().map(|(label, path)| format!("[{label}]: {path}\n")).collect();
    if std::env::var_os("ECHOD_DRAW").is_some() {
        fs::write(LINKS, &lines).expect("links.md");
    }
    assert!(read(LINKS) == lines, "{LINKS} is out of date; ECHOD_DRAW=1 cargo test --test links writes it");
}

// ---- what a browser would cut off or space badly ----

#[test]
fn blocks_fit_into_a_rendered_page() {
    let mut wide = Vec::new();
    for page in PAGES {
        let text = read(page);
        let lines = block_lines(&text).into_iter().filter(|(_, line)| columns(line) > MAX_COLUMNS);
        wide.extend(lines.map(|(number, line)| format!("{page}:{number}: {} columns", columns(line))));
    }
    assert!(wide.is_empty(), "at most {MAX_COLUMNS} columns: {wide:#?}");
}

/// Returns what is wrong with a page in Chinese: a line break or a space between Chinese characters is rendered as a gap,
/// and straight quotes and slanted characters look foreign.
fn chinese_faults(page: &str) -> Vec<String> {
    let is_chinese = |c: char| columns(&c.to_string()) == 2;
    let mut faults = Vec::new();
    let prose = prose(page);
    let lines: Vec<&str> = prose.lines().collect();
    for pair in lines.windows(2) {
        let is_text = |line: &str| !line.is_empty() && !line.starts_with(['#', '|', '-', '[', '<', '>', '!']);
        if is_text(pair[0]) && is_text(pair[1]) {
            faults.push(format!("a paragraph has two lines: {}", pair[1]));
        }
    }
    for line in lines {
        let text: Vec<char> = line.split('`').step_by(2).collect::<Vec<_>>().join("`").chars().collect();
        let gap = text.windows(3).any(|c| is_chinese(c[0]) && c[1] == ' ' && is_chinese(c[2]));
        let slanted = line.replace("**", "").split('`').step_by(2).any(|text| text.contains('*'));
        let quoted = text.contains(&'"') && text.iter().any(|&c| is_chinese(c)) && !line.contains("id=\"");
        for (is_fault, name) in
            [(gap, "a space between characters"), (slanted, "slanted characters"), (quoted, "straight quotes")]
        {
            if is_fault {
                faults.push(format!("{name}: {line}"));
            }
        }
    }
    faults
}

#[test]
fn chinese_pages_have_no_stray_spaces_or_quotes() {
    for page in CHINESE {
        let faults = chinese_faults(&read(page));
        assert!(faults.is_empty(), "{page}: {faults:#?}");
    }
}

// ---- the checks themselves ----

#[test]
fn broken_links_are_found() {
    assert_eq!(broken("README.md", "src/docs/tour.md"), None);
    assert_eq!(broken("README.md", "https://example.org/x"), None);
    assert!(broken("README.md", "src/docs/no.md").is_some());
    assert!(broken("README.md", "#no-such-heading").is_some());
    assert_eq!(broken("README.md", "#measure-it"), None);
    assert_eq!(inline_targets("[a](b) ![c](d#e)\n```\n[x](y)\n```\n"), ["b", "d#e"]);
    assert_eq!(used_labels("[`A::b`] [text][x] [`c`](d)\n[`A::b`]: e\n"), ["`A::b`", "x"]);
}

#[test]
fn anchors_are_made_as_code_hosts_make_them() {
    assert_eq!(slug(" What the ten lines get wrong"), "what-the-ten-lines-get-wrong");
    assert_eq!(slug(" <a id=\"t1\"></a>T1. `Ok(0)`, or not?"), "t1-ok0-or-not");
    assert_eq!(anchors("# A b\n```\n# not a heading\n```\n## <a id=\"t1\"></a>T1\n"), ["a-b", "t1", "t1"]);
}

#[test]
fn definition_of_an_item_is_recognized() {
    let source = "impl<T> Connection<T> {\n    pub fn work<T>() {}\n}\npub enum State {\n    Open,\n    Draining {\n}\npub const MAX: u8 = 1;\n#[cfg(test)]\nmod tests {\n    fn only_here() {}\n}\n";
    assert!(
        defines(source, "Connection::work") && defines(source, "State::Open") && defines(source, "State::Draining")
    );
    assert!(defines(source, "MAX") && defines(source, "work"));
    assert!(!defines(source, "Connection::wor") && !defines(source, "Server::work") && !defines(source, "only_here"));
    assert!(!defines(source, "Open"), "a variant alone is ambiguous");
    assert_eq!(documented("traps", "traps.md#t1"), Ok("crate::docs::traps#t1".into()));
    assert!(documented("`no_such_item`", "../event_loop/server.rs").is_err());
    assert!(documented("x", "../../examples/lines.rs").is_err());
    assert_eq!(
        documented("`Address::bind`", "../listen/socket.rs"),
        Ok("crate::listen::address::Address::bind".into())
    );
    assert_eq!(page_of("const MAX: u8 = 1;\nfn f() {}", "MAX"), Some(("constant.MAX.html".into(), false)));
    assert_eq!(page_of("pub fn f() {}\n    fn f() {}", "f"), Some(("fn.f.html".into(), true)));
    assert!(is_public_module("event_loop/server") && !is_public_module("event_loop/no_such_module"));
}

#[test]
fn width_counts_terminal_columns() {
    assert_eq!(columns("──► len"), 7);
    assert_eq!(columns("图例"), 4);
    assert_eq!(block_lines("a\n```text\nb\n```\nc\n"), [(3, "b")]);
}

#[test]
fn chinese_faults_are_found() {
    assert_eq!(chinese_faults("# 标题\n\n一段，**粗体**，`a \"b\"`。\n\n- 甲\n- 乙\n"), [""; 0]);
    assert_eq!(chinese_faults("一行\n又一行\n").len(), 1);
    assert_eq!(chinese_faults("有 空格\n").len(), 1);
    assert_eq!(chinese_faults("他说\"好\"。\n").len(), 1);
    assert_eq!(chinese_faults("这是*斜体*字。\n").len(), 1);
}
