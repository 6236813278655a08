//! The layout of `src` is an architecture: imports run in one direction only, the reference loop knows nothing of the
//! process around it, and no file is too long to read in one sitting. CONTRIBUTING.md explains the rules.

#[path = "support/sources.rs"]
mod sources;

use std::path::Path;

use sources::{read, sources_in};

/// The modules in `src` that form the architecture, each with those from which it may import besides itself.
const MAY_USE: [(&str, &[&str]); 6] = [
    ("listen", &[]),
    ("event_loop", &["listen"]),
    ("metrics", &["listen", "event_loop"]),
    ("daemon", &["listen", "event_loop", "metrics"]),
    ("explain", &["listen", "event_loop", "daemon"]),
    ("docs", &[]),
];

/// What a reader of the reference should not have to know, as words that would appear in code: the environment, `/proc`,
/// and the crates for options, HTTP and log sinks.
const FOREIGN: [&str; 6] = ["std::env", "env::var", "/proc", "clap", "httparse", "env_logger"];

/// Named exceptions to [`FOREIGN`]: a line of this file may contain this text.
const EXCEPTIONS: [(&str, &str); 1] = [
    // The kernel silently caps the backlog (somaxconn) and the socket buffers; no system call returns these limits.
    ("listen", "/proc/sys/net/core/"),
];

/// A file with more lines than this, without its tests, holds more than one concept. The aim is 400; some slack keeps the
/// test from failing over a comment.
const MAX_LINES: usize = 420;

/// Returns the code of a file without its unit tests, comments and documentation. Only whole-line comments are removed,
/// and those after code: `//` inside a string would be cut, too, which hides nothing that is checked here but URLs.
fn code(source: &str) -> String {
    let code = without_tests(source);
    let lines = code.lines().map(|line| line.split("//").next().expect("at least one part"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the part of a file before its unit tests.
fn without_tests(source: &str) -> &str {
    let attributes = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(all(test,"];
    let ends = attributes.iter().filter_map(|attribute| source.find(attribute));
    &source[..ends.min().unwrap_or(source.len())]
}

/// Returns the modules at the top of the crate that this code imports from: `use crate::x::…`, a path `crate::x::…`, and
/// grouped imports `use crate::{x::…, y::…}`.
fn imported_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (start, path) in code.match_indices("crate::") {
        let follows_name = code[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
        let rest = &code[start + path.len()..];
        if follows_name {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(group_heads(group)),
            None => modules.extend(first_name(rest)),
        }
    }
    modules
}

/// Returns the first names of the paths in `{a::b, c::{d, e}}`, given the text after the opening brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(String::new()),
            _ if depth == 0 => heads.last_mut().expect("not empty").push(c),
            _ => {}
        }
    }
    heads.iter().filter_map(|head| first_name(head.trim())).collect()
}

fn first_name(path: &str) -> Option<String> {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    (end > 0).then(|| path[..end].to_owned())
}

/// Returns the imports of this source that its module may not make.
fn forbidden_imports(module: &str, source: &str) -> Vec<String> {
    let (_, allowed) = MAY_USE.iter().find(|(name, _)| *name == module).unwrap_or_else(|| {
        panic!("src/{module} is not in MAY_USE: decide what it may import");
    });
    let is_forbidden = |name: &String| {
        let is_module = MAY_USE.iter().any(|(other, _)| other == name);
        is_module && name != module && !allowed.contains(&name.as_str())
    };
    imported_modules(&code(source)).into_iter().filter(is_forbidden).collect()
}

/// Returns the lines of this source that mention what the reference must not know.
fn foreign_lines(module: &str, source: &str) -> Vec<String> {
    let is_exception = |line: &str| EXCEPTIONS.iter().any(|(name, text)| *name == module && line.contains(text));
    let is_foreign = |line: &&str| FOREIGN.iter().any(|word| contains_word(line, word)) && !is_exception(line);
    code(source).lines().filter(is_foreign).map(|line| line.trim().to_owned()).collect()
}

/// Returns whether the line contains this word, not as a part of a longer name.
fn contains_word(line: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(start, _)| !line[..start].ends_with(is_name) && !line[start + word.len()..].starts_with(is_name))
}

/// Returns the number of lines before the unit tests.
fn length(source: &str) -> usize {
    without_tests(source).lines().count()
}

/// Returns every file in `src` with its text, and the module that it belongs to (`None` for `main.rs` and `lib.rs`).
fn files() -> Vec<(String, Option<String>, String)> {
    let paths = sources_in("src");
    assert!(paths.len() > 25, "only {} files found: run the tests in the project's root", paths.len());
    // Helpers of the unit tests are not part of the architecture.
    let is_for_tests = |path: &Path| {
        let page = path.with_file_name("mod.rs");
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        page.exists() && read(page).contains(&format!("#[cfg(test)]\nmod {name};"))
    };
    let file = |path: &std::path::PathBuf| {
        let folder = path.parent().filter(|folder| *folder != Path::new("src"));
        let module = folder.and_then(|folder| folder.iter().nth(1)).map(|module| module.to_string_lossy().into_owned());
        (path.display().to_string(), module, read(path))
    };
    paths.iter().filter(|path| !is_for_tests(path)).map(file).collect()
}

#[test]
fn imports_follow_the_architecture() {
    let wrong: Vec<String> = files()
        .into_iter()
        .filter_map(|(path, module, source)| Some((path, module?, source)))
        .flat_map(|(path, module, source)| {
            let imports = forbidden_imports(&module, &source);
            imports.into_iter().map(move |import| format!("{path} imports {import}, which {module} may not use"))
        })
        .collect();
    assert!(wrong.is_empty(), "see \"Layout\" in CONTRIBUTING.md: {wrong:#?}");
}

#[test]
fn reference_knows_nothing_of_the_process_around_it() {
    let wrong: Vec<String> = files()
        .into_iter()
        .filter_map(|(path, module, source)| Some((path, module?, source)))
        .filter(|(_, module, _)| module == "event_loop" || module == "listen")
        .flat_map(|(path, module, source)| {
            foreign_lines(&module, &source).into_iter().map(move |line| format!("{path}: {line}"))
        })
        .collect();
    assert!(wrong.is_empty(), "see \"Layout\" in CONTRIBUTING.md: {wrong:#?}");
}

#[test]
fn no_file_has_too_many_lines() {
    let long: Vec<String> = files()
        .into_iter()
        .map(|(path, _, source)| (path, length(&source)))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{path}: {lines} lines before its tests"))
        .collect();
    assert!(long.is_empty(), "at most {MAX_LINES} lines, one concept per file: {long:#?}");
}

#[test]
fn every_module_page_says_what_it_holds() {
    for (module, _) in MAY_USE {
        let page = read(format!("src/{module}/mod.rs"));
        let first = page.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//! ") && first.len() > 30,
            "src/{module}/mod.rs should begin with a sentence: {first}"
        );
    }
}

// ---- the checks themselves, on made-up text ----

#[test]
fn import_against_direction_is_found() {
    let allowed = "use crate::listen::listener::Listener;\nuse crate::event_loop::clock::Clock;\n";
    assert_eq!(forbidden_imports("event_loop", allowed), [""; 0]);
    assert_eq!(forbidden_imports("listen", allowed), ["event_loop"]);
    assert_eq!(forbidden_imports("event_loop", "fn f() -> crate::daemon::options::Options {"), ["daemon"]);
    assert_eq!(forbidden_imports("metrics", "use crate::{daemon::output, listen::{address, socket}};"), ["daemon"]);
    assert_eq!(forbidden_imports("daemon", "use crate::explain;"), ["explain"]);
    assert_eq!(forbidden_imports("explain", "use crate::{\n    daemon::output,\n    metrics,\n};"), ["metrics"]);
}

#[test]
fn links_and_tests_are_not_imports() {
    assert_eq!(
        forbidden_imports("listen", "//! See [`crate::daemon::options`].\n/// And crate::explain::x.\n"),
        [""; 0]
    );
    assert_eq!(forbidden_imports("listen", "let x = 1; // crate::daemon::x\n"), [""; 0]);
    let tests = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::daemon::options;\n}\n";
    assert_eq!(forbidden_imports("listen", tests), [""; 0]);
    let tests =
        "fn f() {}\n\n#[cfg(all(test, target_os = \"linux\"))]\nmod tests {\n    use crate::daemon::options;\n}\n";
    assert_eq!(forbidden_imports("listen", tests), [""; 0]);
    assert_eq!(forbidden_imports("listen", "$crate::daemon::x; my_crate::daemon::x; crate::links!();"), [""; 0]);
}

#[test]
#[should_panic(expected = "src/utils is not in MAY_USE")]
fn unknown_module_is_rejected() {
    forbidden_imports("utils", "");
}

#[test]
fn mention_of_the_process_is_found() {
    assert_eq!(foreign_lines("event_loop", "    let port = std::env::args();\n"), ["let port = std::env::args();"]);
    assert_eq!(foreign_lines("event_loop", "use std::env::var;\n").len(), 1);
    assert_eq!(
        foreign_lines("listen", "let text = read(\"/proc/self/limits\");"),
        ["let text = read(\"/proc/self/limits\");"]
    );
    for line in ["use clap::Parser;", "httparse::Request::new(&mut headers)", "env_logger::init();", "env::var(\"X\")"]
    {
        assert_eq!(foreign_lines("event_loop", line), [line]);
    }
    let somaxconn = "fs::read_to_string(\"/proc/sys/net/core/somaxconn\")";
    assert_eq!(foreign_lines("listen", somaxconn), [""; 0]);
    assert_eq!(foreign_lines("event_loop", somaxconn), [somaxconn], "an exception belongs to one module");
    assert_eq!(foreign_lines("listen", "// as in /proc/net/tcp\nlet clapper = 1;"), [""; 0]);
}

#[test]
fn lines_are_counted_up_to_the_tests() {
    let source = "fn f() {}\n".repeat(MAX_LINES) + "\n#[cfg(test)]\nmod tests {\n" + &"x\n".repeat(MAX_LINES) + "}\n";
    assert_eq!(length(&source), MAX_LINES);
    assert_eq!(length(&"fn f() {}\n".repeat(MAX_LINES + 1)), MAX_LINES + 1);
    assert_eq!(length("#[cfg(test)]\nuse x;\nfn f() {}\n"), 3, "only a module of tests ends the count");
}
