//! `trestle out`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use trestle_cache::{Content, How};
use trestle_engine::pipeline::{Stage, StageId};
use trestle_engine::plan::{Fate, given};

use crate::args::Out;
use crate::fail::Fail;
use crate::project::Project;

/// Prints where outputs are, after laying out a checked copy of them.
pub fn out(args: &Out) -> Result<ExitCode, Fail> {
    let (project, words) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let (stage, name) = match words.as_slice() {
        [stage] => (stage, None),
        [stage, name] => (stage, Some(name.as_str())),
        _ => {
            return Err(Fail::with_help(
                "`out` takes a stage and, if you like, the name of an output",
                "for example `trestle out table csv`",
            ));
        }
    };
    let id = project.stage(stage)?;
    let outputs = outputs(&project, id)?;
    let stage = &project.pipeline.stages[id];
    let chosen = choose(stage, name)?;
    let folder = match &args.to {
        Some(folder) => folder.clone(),
        None => project.folder.join("out").join(trestle_engine::run::file_name(&stage.name)),
    };
    std::fs::create_dir_all(&folder).map_err(|e| Fail::message(format!("cannot create {}: {e}", folder.display())))?;
    let mut text = String::new();
    for name in chosen {
        let Some(content) = outputs.get(name) else { continue };
        let place = folder.join(Path::new(&stage.outputs[name].path).file_name().unwrap_or(name.as_ref()));
        lay_out(&project, content, &place, args.to.is_some())?;
        text.push_str(&format!("{}\n", place.display()));
    }
    crate::print(&text)
}

/// The stage's outputs as they are now: only a hit has any.
fn outputs(project: &Project, id: StageId) -> Result<std::collections::BTreeMap<String, Content>, Fail> {
    let name = project.pipeline.stages[id].name.clone();
    let wanted = project.wanted(std::slice::from_ref(&name))?;
    let fates = given(&project.pipeline, &wanted, &project.cache, &project.history)?;
    project.cache.flush()?;
    match fates.into_iter().find(|(other, _)| *other == id) {
        Some((_, Fate::Hit(record))) => Ok(record.outputs),
        _ => Err(Fail::with_help(
            format!("`{name}` has no outputs for the pipeline as it is now"),
            format!("run it first: `trestle run … '{name}'`; `trestle explain '{name}'` says what changed"),
        )),
    }
}

fn choose<'s>(stage: &'s Stage, name: Option<&str>) -> Result<Vec<&'s String>, Fail> {
    let names: Vec<&String> = stage.outputs.keys().collect();
    match name {
        None => Ok(names),
        Some(name) => match names.iter().find(|known| known.as_str() == name) {
            Some(found) => Ok(vec![found]),
            None => Err(Fail::with_help(
                format!("`{}` has no output `{name}`", stage.name),
                format!("its outputs are: {}", names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ")),
            )),
        },
    }
}

/// Our own folder is laid out anew; in a folder of the user's nothing is replaced but an earlier copy of the same name.
fn lay_out(project: &Project, content: &Content, place: &PathBuf, users: bool) -> Result<(), Fail> {
    let existing = std::fs::symlink_metadata(place).ok();
    match existing {
        Some(meta) if meta.is_dir() && users && std::fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some()) => {
            return Err(Fail::with_help(
                format!("{} is a folder with something in it", place.display()),
                "choose another folder, or remove it first",
            ));
        }
        Some(meta) if meta.is_dir() => std::fs::remove_dir_all(place),
        Some(_) => std::fs::remove_file(place),
        None => Ok(()),
    }
    .map_err(|e| Fail::message(format!("cannot replace {}: {e}", place.display())))?;
    Ok(project.cache.materialize(content, place, How::Copy)?)
}
