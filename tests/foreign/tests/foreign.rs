//! A program that loaded us as a shared library is never executed again: its `main` would run a second time.

use std::path::PathBuf;
use std::process::{Command, Stdio};

const HOST: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    printf("main\n");
    fflush(stdout);
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) { printf("%s\n", dlerror()); return 1; }
    ((void (*)(void)) dlsym(library, "foreign_start"))();
    return 0;
}
"#;

#[test]
fn a_host_that_loaded_us_runs_its_main_once_and_gets_an_error() {
    // target/PROFILE/deps/THIS
    let profile = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = [profile.join("libforeign.so"), profile.parent().unwrap().join("libforeign.so")];
    let library = library.iter().find(|path| path.exists()).expect("the library was built beside the test");
    let host: PathBuf = std::env::temp_dir().join(format!("offspring-host-{}", std::process::id()));
    let mut compiler = Command::new("cc");
    compiler.args(["-x", "c", "-", "-ldl", "-o"]).arg(&host).stdin(Stdio::piped());
    let mut compiler = compiler.spawn().unwrap();
    std::io::Write::write_all(&mut compiler.stdin.take().unwrap(), HOST.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success());
    let output = Command::new(&host).arg(library).output().unwrap();
    std::fs::remove_file(&host).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.matches("main\n").count(), 1, "{text}");
    assert!(text.contains("Unsupported") && text.contains("shared library"), "{text}");
}
