//! The house rules that a machine can check.

use std::path::{Path, PathBuf};

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file below `folder`: its path from there, and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    files(&root, &mut found);
    assert!(!found.is_empty());
    let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// A file's lines without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn files_are_short() {
    for folder in ["src", "tests", "examples"] {
        for (path, text) in sources(folder) {
            assert!(text.lines().count() <= 500, "{folder}/{path} is over 500 lines long");
        }
    }
}

#[test]
fn the_floor_alone_knows_the_system() {
    for (path, text) in sources("src").iter().filter(|(path, _)| !path.starts_with("sys/")) {
        for word in ["unsafe ", "libc::", "rustix", "target_os"] {
            let line = code(text).find(|line| line.contains(word));
            assert!(line.is_none(), "{path} has {word:?}: {line:?}");
        }
    }
}

#[test]
fn no_line_runs_in_another_process_than_its_folder_says() {
    for (path, text) in
        sources("src").iter().filter(|(path, _)| path.starts_with("child/") || path.starts_with("zygote/"))
    {
        let line = code(text).find(|line| line.contains("parent::"));
        assert!(line.is_none(), "{path} reaches into the parent: {line:?}");
    }
}

#[test]
fn one_place_names_the_format() {
    for (path, text) in sources("src").iter().filter(|(path, _)| !path.starts_with("wire/codec")) {
        assert!(!code(text).any(|line| line.contains("rmp")), "{path} names the format");
    }
}

#[test]
fn those_that_only_decide_ask_neither_the_system_nor_the_clock() {
    for (path, text) in sources("src") {
        if [
            "death.rs",
            "verdict.rs",
            "limits.rs",
            "parent/shutdown.rs",
            "parent/spares.rs",
            "parent/table.rs",
            "wire/frame.rs",
            "wire/message.rs",
        ]
        .contains(&path.as_str())
        {
            let body = text.split("#[cfg(test)]").next().unwrap();
            for word in ["Instant::now", "sys::io", "thread::", "Mutex"] {
                assert!(!code(body).any(|line| line.contains(word)), "{path} has {word}");
            }
        }
    }
}

#[test]
fn the_changelog_has_this_version() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("CHANGELOG.md")).unwrap();
    assert!(text.contains(env!("CARGO_PKG_VERSION")));
}
