//! Measures trestle beside other build systems.
#![allow(dead_code)]
mod dag;
mod measure;
mod mersenne;
mod tools;
fn main() {}
