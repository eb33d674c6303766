//! A Landlock domain that has everything but some folders.

#[cfg(target_os = "linux")]
use std::ffi::OsStr;
#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetStatus,
};

#[cfg(target_os = "linux")]
use rustix::fs::{FileType, Mode, OFlags};

use super::Sandbox;

/// What a thread enters, with all that it will start. Its rules are made once: they are one for each file beside the project and above.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Domain {
    /// None if the folder alone is asked for.
    rules: Option<RulesetCreated>,
    /// Whether a thread gets a network namespace of its own.
    own_network: bool,
    held: String,
}

#[cfg(target_os = "linux")]
impl Domain {
    /// Makes a domain that keeps `closed` shut, but for what lies below `open`, and puts the calling thread under it.
    pub fn enter_new(asked: Sandbox, closed: &[PathBuf], open: &Path, network: bool) -> Result<Self, String> {
        let own_network = !network && own_network();
        let forbid_tcp = !network && !own_network;
        let files = if asked == Sandbox::Off { "folder" } else { "landlock" };
        let held = match (network, own_network) {
            (true, _) => files.to_owned(),
            (false, true) => format!("{files}, no network"),
            (false, false) => format!("{files}, no TCP"),
        };
        let makes_rules = asked != Sandbox::Off || forbid_tcp;
        let rules = || if makes_rules { rules(asked, closed, open, forbid_tcp).map(Some) } else { Ok(None) };
        let domain = Self { rules: rules().map_err(|e| e.to_string())?, own_network, held };
        domain.restrict()?;
        Ok(domain)
    }

    /// Puts the calling thread under the domain, too.
    pub fn enter(&self) -> Result<(), String> {
        if self.own_network && !own_network() {
            return Err("no second network namespace can be made".to_owned());
        }
        self.restrict()
    }

    /// What holds for those under it, in words.
    pub fn held(&self) -> String {
        self.held.clone()
    }

    /// The same domain once more, for another thread.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        let rules = self.rules.as_ref().map(RulesetCreated::try_clone).transpose()?;
        Ok(Self { rules, own_network: self.own_network, held: self.held.clone() })
    }

    fn restrict(&self) -> Result<(), String> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let status = rules.try_clone().map_err(|e| e.to_string())?.restrict_self().map_err(|e| e.to_string())?;
        let is_whole = status.ruleset == RulesetStatus::FullyEnforced;
        if is_whole { Ok(()) } else { Err("the kernel enforces only a part of it".to_owned()) }
    }
}

/// Gives the calling thread a network namespace without a way out; it takes a right that not everybody has.
#[cfg(target_os = "linux")]
fn own_network() -> bool {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok()
}

#[cfg(target_os = "linux")]
fn rules(asked: Sandbox, closed: &[PathBuf], open: &Path, forbid_tcp: bool) -> Result<RulesetCreated, Box<dyn std::error::Error>> {
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if asked != Sandbox::Off {
        ruleset = ruleset.handle_access(AccessFs::from_all(ABI::V3))?;
    }
    if forbid_tcp {
        ruleset = ruleset.handle_access(AccessNet::from_all(ABI::V4))?;
    }
    let mut created = ruleset.create()?;
    if asked != Sandbox::Off {
        // In a new cache nobody had a room before; a rule is for a folder that is there.
        std::fs::create_dir_all(open)?;
        let open = rustix::fs::open(open, FOR_A_RULE, Mode::empty())?;
        (&mut created).add_rule(PathBeneath::new(open, AccessFs::from_all(ABI::V3)))?;
        let mut outcome = Ok(());
        for_all_beside(closed, &mut |file, is_folder| {
            let rights = if is_folder { AccessFs::from_all(ABI::V3) } else { AccessFs::from_file(ABI::V3) };
            if outcome.is_ok() {
                outcome = (&mut created).add_rule(PathBeneath::new(file, rights)).map(drop);
            }
        });
        outcome?;
    }
    Ok(created)
}

/// There is none: only Linux has Landlock.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub enum Domain {}

#[cfg(not(target_os = "linux"))]
impl Domain {
    /// Says that there is none.
    pub fn enter_new(_: Sandbox, _: &[PathBuf], _: &Path, _: bool) -> Result<Self, String> {
        Err("only Linux has Landlock".to_owned())
    }

    /// Cannot be called.
    pub fn enter(&self) -> Result<(), String> {
        match *self {}
    }

    /// Cannot be called.
    pub fn held(&self) -> String {
        match *self {}
    }

    /// Cannot be called.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        match *self {}
    }
}

/// Gives everything but the closed folders: what lies beside them and beside the folders above them. Opened for nothing but a rule, with
/// whether it is a folder.
#[cfg(target_os = "linux")]
fn for_all_beside(closed: &[PathBuf], allow: &mut dyn FnMut(OwnedFd, bool)) {
    let closed: Vec<PathBuf> = closed.iter().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
    beside(Path::new("/"), &closed, allow);
}

/// For a rule alone: nothing can be read through it.
#[cfg(target_os = "linux")]
const FOR_A_RULE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

#[cfg(target_os = "linux")]
fn beside(folder: &Path, closed: &[PathBuf], allow: &mut dyn FnMut(OwnedFd, bool)) {
    let reading = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(mut entries) = rustix::fs::open(folder, reading, Mode::empty()).and_then(rustix::fs::Dir::new) else { return };
    // What in this folder is closed or leads there.
    let on_the_way: Vec<&OsStr> = closed.iter().filter_map(|shut| shut.strip_prefix(folder).ok()?.iter().next()).collect();
    while let Some(entry) = entries.read() {
        let Ok(entry) = entry else { continue };
        let (name, kind) = (entry.file_name(), entry.file_type());
        let name = OsStr::from_bytes(name.to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        if kind == FileType::Directory && !on_the_way.contains(&name) {
            allow_entry(&entries, name, kind, allow);
            continue;
        }
        let path = folder.join(name);
        // A link is what it points to; nothing else needs a look, as the folder is no link.
        let is_link = matches!(kind, FileType::Symlink | FileType::Unknown);
        let real = if is_link { std::fs::canonicalize(&path).ok() } else { None }.unwrap_or_else(|| path.clone());
        if closed.iter().any(|shut| real.starts_with(shut)) {
            continue;
        }
        if closed.iter().any(|shut| shut.starts_with(&real)) {
            // A link to a folder above a closed one is left out: what it leads to is reached by its own name.
            if real == path {
                beside(&path, closed, allow);
            }
        } else {
            allow_entry(&entries, name, kind, allow);
        }
    }
}

/// A file that went meanwhile, or that may not be opened, is not needed.
#[cfg(target_os = "linux")]
fn allow_entry(folder: &rustix::fs::Dir, name: &OsStr, kind: FileType, allow: &mut dyn FnMut(OwnedFd, bool)) {
    let Ok(file) = folder.fd().and_then(|folder| rustix::fs::openat(folder, name, FOR_A_RULE, Mode::empty())) else { return };
    let is_folder = match kind {
        FileType::Directory => true,
        FileType::Symlink | FileType::Unknown => {
            rustix::fs::fstat(&file).is_ok_and(|meta| FileType::from_raw_mode(meta.st_mode) == FileType::Directory)
        }
        _ => false,
    };
    allow(file, is_folder);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn everything_but_the_closed_folders_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        for dir in ["a/project/data", "a/other", "b"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("a/project"), root.join("b/link")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("up")).unwrap();
        std::fs::write(root.join("a/file"), "").unwrap();
        let mut allowed = Vec::new();
        for_all_beside(&[root.join("a/project")], &mut |file, is_folder| {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            assert_eq!(is_folder, path.is_dir(), "{}", path.display());
            allowed.push(path);
        });
        let here: Vec<_> = allowed.iter().filter_map(|path| Some(path.strip_prefix(&root).ok()?.to_str().unwrap().to_owned())).collect();
        assert_eq!(here.len(), 3, "{here:?}");
        for dir in ["a/other", "a/file", "b"] {
            assert!(here.contains(&dir.to_owned()), "{dir}");
        }
        assert!(allowed.contains(&PathBuf::from("/usr")) && !allowed.contains(&PathBuf::from("/")));
    }
}
