//! `trestle explain`.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use trestle_engine::pipeline::StageId;
use trestle_engine::plan::{Fate, plan};

use crate::args::{Explain, Format};
use crate::fail::Fail;
use crate::project::Project;
use crate::render::words::{duration, reason_lines, section_name};

/// Prints why one stage would run, or that it would not.
pub fn explain(args: &Explain) -> Result<ExitCode, Fail> {
    let (project, words) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let [word] = words.as_slice() else {
        return Err(Fail::with_help("`explain` takes one stage", "for example `trestle explain table`"));
    };
    let id = project.stage(word)?;
    let mut wanted = vec![false; project.pipeline.stages.len()];
    wanted[id] = true;
    let wanted = project.with_upstream(wanted);
    let fates = plan(&project.pipeline, &wanted, &project.cache, &project.history)?;
    project.cache.flush()?;
    let text = match args.format {
        Format::Human => human(&project, id, &fates),
        Format::Json => as_json(&project, id, &fates),
    };
    crate::print(&text)
}

fn fate_of(fates: &[(StageId, Fate)], id: StageId) -> Option<&Fate> {
    fates.iter().find(|(other, _)| *other == id).map(|(_, fate)| fate)
}

/// Stages that must run before `id`, nearest the sources first.
fn roots(project: &Project, fates: &[(StageId, Fate)], id: StageId) -> Vec<StageId> {
    let mut roots = Vec::new();
    let mut open = vec![id];
    let mut seen = vec![false; project.pipeline.stages.len()];
    while let Some(next) = open.pop() {
        if std::mem::replace(&mut seen[next], true) {
            continue;
        }
        match fate_of(fates, next) {
            Some(Fate::Later(waits)) => open.extend(waits),
            Some(Fate::Run(_)) => roots.push(next),
            _ => {}
        }
    }
    roots.sort_unstable();
    roots
}

fn human(project: &Project, id: StageId, fates: &[(StageId, Fate)]) -> String {
    let name = &project.pipeline.stages[id].name;
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = match fate_of(fates, id) {
        Some(Fate::Hit(record)) => {
            let made = &record.provenance;
            let took = duration(std::time::Duration::from_millis(made.duration_ms));
            let mut lines = format!("{name} is cached: nothing that can change its outputs differs\n");
            let _ = writeln!(
                lines,
                "  key   {}\n  made  by `{}` in {took} on {} with {} thread(s)",
                record.key, made.stage, made.host, made.threads
            );
            for ingredient in record.manifest.iter() {
                let _ = writeln!(lines, "  {} {} = {}", section_name(ingredient.section), ingredient.name, one_line(&ingredient.value));
            }
            write!(text, "{lines}")
        }
        Some(Fate::Run(work)) => writeln!(text, "{name} has to run:\n{}", reason_lines(&work.reasons)),
        Some(Fate::Later(_)) => {
            let _ = writeln!(text, "{name} may have to run: it reads what these stages make, and they have to run first");
            for root in roots(project, fates, id) {
                if let Some(Fate::Run(work)) = fate_of(fates, root) {
                    let _ = writeln!(text, "{} has to run:\n{}", project.pipeline.stages[root].name, reason_lines(&work.reasons));
                }
            }
            writeln!(text, "if they give the same outputs as before, {name} does not run")
        }
        None => writeln!(text, "{name} is not part of the plan"),
    };
    text
}

fn one_line(value: &str) -> String {
    let line = value.replace('\n', "⏎");
    if line.chars().count() > 100 { format!("{}…", line.chars().take(99).collect::<String>()) } else { line }
}

fn as_json(project: &Project, id: StageId, fates: &[(StageId, Fate)]) -> String {
    let name = &project.pipeline.stages[id].name;
    let value = match fate_of(fates, id) {
        Some(Fate::Hit(record)) => json!({"stage": name, "fate": "cached", "key": record.key.to_string(), "manifest": record.manifest}),
        Some(Fate::Run(work)) => {
            json!({"stage": name, "fate": "run", "key": work.key.to_string(), "reasons": work.reasons, "manifest": work.manifest})
        }
        Some(Fate::Later(_)) => {
            let causes: Vec<_> = roots(project, fates, id)
                .into_iter()
                .filter_map(|root| {
                    if let Some(Fate::Run(work)) = fate_of(fates, root) {
                        Some(json!({"stage": project.pipeline.stages[root].name, "reasons": work.reasons}))
                    } else {
                        None
                    }
                })
                .collect();
            json!({"stage": name, "fate": "later", "causes": causes})
        }
        None => json!({"stage": name, "fate": "unknown"}),
    };
    format!("{value}\n")
}
