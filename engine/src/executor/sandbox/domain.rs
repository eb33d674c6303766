//! A Landlock domain that has everything but some folders.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetStatus,
};
use rustix::fs::Mode;

use super::Sandbox;
use super::beside::{FOR_A_RULE, for_all_beside};

/// What a thread enters, with all that it will start. Its rules are made once: they are one for each file beside the project and above.
#[derive(Debug)]
pub struct Domain {
    /// None if the folder alone is asked for.
    rules: Option<RulesetCreated>,
    /// Whether a thread gets a network namespace of its own.
    own_network: bool,
    held: String,
}

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
fn own_network() -> bool {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_ok()
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
