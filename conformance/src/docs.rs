//! The documentation's own tests: links lead somewhere, commands are run, and what programs refer to is there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every page that people read.
fn pages() -> Vec<PathBuf> {
    let root = root();
    let mut pages: Vec<PathBuf> = [
        "README.md",
        "CHANGELOG.md",
        "images/README.md",
        "shim-hpk/README.md",
        "vagrant/README.md",
    ]
    .map(|name| root.join(name))
    .into();
    for folder in ["docs", "docs/bench"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        pages.extend(files.filter(|path| path.extension().is_some_and(|it| it == "md")));
    }
    pages
}

/// Targets of `](…)` outside code.
fn links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code || line.starts_with("    ") {
            continue;
        }
        let parts = line.split("](").skip(1);
        links.extend(parts.filter_map(|rest| rest.split_once(')').map(|(target, _)| target)));
    }
    links
}

/// Headings as the anchors that renderers make of them: lower case, spaces as hyphens, other signs
/// left out.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|sign| match sign {
                ' ' => Some('-'),
                '-' | '_' => Some(sign),
                _ => sign.is_alphanumeric().then_some(sign),
            });
            kept.collect()
        })
        .collect()
}

#[test]
fn every_link_leads_to_a_file_and_its_heading() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => page.clone(),
                _ => page.parent().unwrap().join(file),
            };
            let is_whole = target.exists()
                && (anchor.is_empty()
                    || anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor));
            if !is_whole {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_page_is_in_the_tarball_with_what_it_links_to() {
    let root = root().canonicalize().unwrap();
    let script = std::fs::read_to_string(root.join("scripts/dist")).unwrap();
    let packed: Vec<&Path> = script.split_whitespace().map(Path::new).collect();
    let mut missing = BTreeSet::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let linked = links(&text).into_iter().filter_map(|link| {
            let file = link.split('#').next().unwrap_or_default();
            (!link.contains("://") && !file.is_empty()).then(|| page.parent().unwrap().join(file))
        });
        for file in linked.chain([page.clone()]) {
            let file = file.canonicalize().unwrap();
            let file = file.strip_prefix(&root).unwrap();
            if !packed.iter().any(|path| file.starts_with(path)) {
                missing.insert(file.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_page_is_in_the_site() {
    let text = std::fs::read_to_string(root().join("docs/site/SUMMARY.md")).unwrap();
    let listed: BTreeSet<&str> = links(&text).into_iter().collect();
    for page in pages() {
        let page = page.strip_prefix(root()).unwrap();
        assert!(listed.contains(page.to_str().unwrap()), "{page:?}");
    }
    for page in &listed {
        assert!(root().join(page).is_file(), "{page}");
    }
}

#[test]
fn every_page_is_in_the_index() {
    let index = std::fs::read_to_string(root().join("docs/README.md")).unwrap();
    let linked: BTreeSet<&str> = links(&index).into_iter().collect();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_page = name.ends_with(".md") && name != "README.md";
        assert!(!is_page || linked.contains(name.as_str()), "{name}");
    }
}

#[test]
fn every_case_is_in_the_specification() {
    let text = std::fs::read_to_string(root().join("docs/specification.md")).unwrap();
    let cases: BTreeSet<&str> = crate::cases::TABLE.iter().map(|case| case.name).collect();
    let missing: Vec<&&str> = cases.iter().filter(|name| !text.contains(**name)).collect();
    assert!(
        missing.is_empty(),
        "in no line of docs/specification.md: {missing:#?}"
    );
}

/// Blocks of a shell's commands, and indented ones, whose language isn't named, with the line before them.
fn commands(text: &str) -> Vec<(&str, &str)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut in_code = false;
    let mut before = "";
    for line in &lines {
        let begins_indented = line.starts_with("    ") && before.is_empty();
        if line.starts_with("```") && in_code {
            in_code = false;
        } else if line.starts_with("```") {
            in_code = true;
            if *line == "```sh" {
                found.push((before, *line));
            }
        } else if begins_indented && !in_code {
            found.push((before, *line));
        }
        before = line;
    }
    found
}

/// Each block of commands is run by a case, or says why not.
#[test]
fn every_command_is_run_or_says_why_not() {
    let folder = root().join("conformance/src/cases");
    let cases: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    let mut idle = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (before, first) in commands(&text) {
            let marked = |kind: &str| {
                let rest = before.strip_prefix("<!-- ")?.strip_prefix(kind)?;
                rest.strip_suffix(" -->")
            };
            let is_run = marked("tested: ").is_some_and(|name| {
                let name = format!("\"{name}\"");
                cases.iter().any(|case| case.contains(&name))
            });
            if !is_run && marked("not run: ").is_none() {
                idle.push(format!("{}: {before:?} before {first:?}", page.display()));
            }
        }
    }
    assert!(idle.is_empty(), "neither tested nor \"not run\": {idle:#?}");
}

#[test]
fn blocks_of_commands_are_told_from_others() {
    let text = "<!-- tested: x -->\n```sh\na\n\n    b\n```\n\n    indented\n    more\n\n```json\n{}\n```\n";
    assert_eq!(
        commands(text),
        [("<!-- tested: x -->", "```sh"), ("", "    indented")]
    );
}

#[test]
fn links_and_anchors_are_read_as_a_renderer_does() {
    assert_eq!(
        links("a [b](c.md#d) and [e](f)\n    [not](this)"),
        ["c.md#d", "f"]
    );
    let found = anchors("# Where the time goes\n### /dev/fuse\n## pods' limits\n");
    for anchor in ["where-the-time-goes", "devfuse", "pods-limits"] {
        assert!(found.contains(anchor), "{found:?}");
    }
}
