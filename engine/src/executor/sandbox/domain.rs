//! A Landlock domain that has everything but some folders.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
};
use rustix::fs::{Mode, OFlags};

use super::Sandbox;
use super::beside::{FOR_A_RULE, for_all_beside};

/// What a process enters before it becomes its program, with all that it will start. Its rules are made once: they are one for each file
/// beside the project and above.
#[derive(Debug)]
pub struct Domain {
    /// Landlock's; none if the folder alone is asked for.
    rules: Option<OwnedFd>,
    /// A network namespace without a way out.
    network: Option<OwnedFd>,
    held: String,
}

impl Domain {
    /// Makes a domain that keeps `closed` shut, but for what lies below `open`.
    pub fn make(asked: Sandbox, closed: &[PathBuf], open: &Path, network: bool) -> Result<Self, String> {
        let nowhere = if network { None } else { own_network() };
        let forbid_tcp = !network && nowhere.is_none();
        let files = if asked == Sandbox::Off { "folder" } else { "landlock" };
        let held = match (network, &nowhere) {
            (true, _) => files.to_owned(),
            (false, Some(_)) => format!("{files}, no network"),
            (false, None) => format!("{files}, no TCP"),
        };
        let makes_rules = asked != Sandbox::Off || forbid_tcp;
        let rules = || if makes_rules { rules(asked, closed, open, forbid_tcp).map(Option::from) } else { Ok(None) };
        Ok(Self { rules: rules().map_err(|e| e.to_string())?, network: nowhere, held })
    }

    /// The rules that a process is to put itself under.
    pub fn rules(&self) -> Option<BorrowedFd<'_>> {
        self.rules.as_ref().map(AsFd::as_fd)
    }

    /// The network namespace that it is to enter.
    pub fn network(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(AsFd::as_fd)
    }

    /// What holds for those under it, in words.
    pub fn held(&self) -> String {
        self.held.clone()
    }
}

/// A network namespace without a way out, if it can be made: it takes a right that not everybody has. A thread makes it for itself, and it stays as
/// long as the file does.
fn own_network() -> Option<OwnedFd> {
    let make = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
        rustix::fs::open(c"/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    };
    // Not the calling thread: it would keep no network.
    std::thread::Builder::new().spawn(make).ok()?.join().ok()?
}

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
