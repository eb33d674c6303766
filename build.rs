//! How the program is linked.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |variable: &str, value: &str| std::env::var(variable).is_ok_and(|found| found == value);
    if !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    // At a fixed address: else a hundred pages are written to before `main`, a tenth of the time in which nothing is found to be done.
    println!("cargo:rustc-link-arg-bin=trestle=-no-pie");
    if let Some(folder) = own_unwinder() {
        println!("cargo:rustc-link-arg-bin=trestle=-L{folder}");
    }
}

/// A folder in which the linker finds the unwinder of panics as a part of the program, where the compiler brings it in that form. To load it as a library of its own
/// at every start takes as long as to look at a hundred files.
fn own_unwinder() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok();
    // Another machine's compiler has another name.
    if variable("HOST") != variable("TARGET") {
        return None;
    }
    let found = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output().ok()?;
    // What it does not have it gives back as it was asked for.
    let is_there = found.status.success() && Path::new(String::from_utf8(found.stdout).ok()?.trim()).is_absolute();
    let folder = variable("OUT_DIR").filter(|_| is_there)?;
    // Rust asks for `gcc_s`. This stands for it, as GCC's own option `-static-libgcc` does for compilers of C.
    std::fs::write(Path::new(&folder).join("libgcc_s.so"), "INPUT(-lgcc_eh -lgcc)\n").ok()?;
    Some(folder)
}
