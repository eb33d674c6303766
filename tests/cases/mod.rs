mod changes;
mod commands;
mod damage;
mod failures;
mod language;
mod native;
mod readme;
mod ui;
