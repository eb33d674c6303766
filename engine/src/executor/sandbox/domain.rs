//! A Landlock domain that has everything but some folders.

use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus,
};

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
        for path in allowed(closed, open) {
            // A file that went meanwhile, or that may not be opened, is not needed.
            let (Ok(fd), Ok(meta)) = (PathFd::new(&path), std::fs::metadata(&path)) else { continue };
            let rights = if meta.is_dir() { AccessFs::from_all(ABI::V3) } else { AccessFs::from_file(ABI::V3) };
            created = created.add_rule(PathBeneath::new(fd, rights))?;
        }
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

/// Everything but the closed folders: what lies beside them and beside the folders above them. And what is open all the same.
fn allowed(closed: &[PathBuf], open: &Path) -> Vec<PathBuf> {
    let closed: Vec<PathBuf> = closed.iter().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
    let mut allowed = vec![open.to_owned()];
    beside(Path::new("/"), &closed, &mut allowed);
    allowed
}

fn beside(folder: &Path, closed: &[PathBuf], allowed: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // A link is what it points to; nothing else needs a look, as the folder is no link.
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let real = if is_link { std::fs::canonicalize(&path).ok() } else { None }.unwrap_or_else(|| path.clone());
        if closed.iter().any(|shut| real.starts_with(shut)) {
            continue;
        }
        if closed.iter().any(|shut| shut.starts_with(&real)) {
            // A link to a folder above a closed one is left out: what it leads to is reached by its own name.
            if real == path {
                beside(&path, closed, allowed);
            }
        } else {
            allowed.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
        let allowed = allowed(&[root.join("a/project")], &root.join("a/project/data"));
        let here: Vec<_> = allowed.iter().filter_map(|path| Some(path.strip_prefix(&root).ok()?.to_str().unwrap().to_owned())).collect();
        assert_eq!(here.len(), 3, "{here:?}");
        for dir in ["a/project/data", "a/other", "b"] {
            assert!(here.contains(&dir.to_owned()), "{dir}");
        }
        assert!(allowed.contains(&PathBuf::from("/usr")) && !allowed.contains(&PathBuf::from("/")));
    }
}
