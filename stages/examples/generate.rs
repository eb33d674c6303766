//! Trains the generator of the quickstart and shows what it can do: `cargo run --release -p trestle-stages --example generate -- pipelines/data OUT [steps] [width] [lr]`.
//!
//! Expect about 60 ms a step on two cores. The sheets end up in OUT, and a generator that is there already is used again. Two classifiers judge every
//! sheet: one of typefaces, whose own accuracy is told on faces that it has not seen, and one of handwritten digits, of images that the style was not learned
//! from. The learned token is held against every style word that the generator knows, by its loss on handwritten digits that it has not seen.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use trestle_stages::data::source::{Options, read};
use trestle_stages::data::split::{Share, split};
use trestle_stages::data::{ClassPrompts, ImageSet, Images, Prompts};
use trestle_stages::generator::Generator;
use trestle_stages::model::{Arch, Config, Model};
use trestle_stages::train::{Length, Recipe, Source};
use trestle_stages::{generation, generator_pretrain, style_inversion};

fn prompts(set: &ImageSet, template: &str) -> Prompts {
    let classes =
        set.meta.classes.iter().map(|name| ClassPrompts { name: name.clone(), prompts: vec![template.replace("{class}", name)] }).collect();
    Prompts { templates: vec![template.to_owned()], classes }
}

/// The first images of a set, and the others.
fn parted(set: &ImageSet, first: usize) -> (ImageSet, ImageSet) {
    let all: Vec<usize> = (0..set.len()).collect();
    (set.subset(&all[..first]).unwrap(), set.subset(&all[first..]).unwrap())
}

/// A classifier of real images.
fn judge(set: &ImageSet) -> Model {
    let mut model = Model::new(Config::for_images(Arch::default(), 32, set).unwrap(), 0).unwrap();
    let recipe = Recipe { length: Length::Steps(300), ..Default::default() };
    trestle_stages::train::train(&mut model, &[Source { set, share: 1.0 }], &recipe, 0, |_, _| ()).unwrap();
    model
}

/// Share of images that the classifier takes for what they are labelled as.
fn recognised(model: &Model, set: &ImageSet) -> f64 {
    let all: Vec<usize> = (0..set.len()).collect();
    let x = set.to_f32(&all, model.config.normalisation).unwrap();
    let logits = model.logits(&model.params.frozen().unwrap(), &x).unwrap().to_vec2::<f32>().unwrap();
    let best = |row: &[f32]| (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    logits.iter().zip(&set.labels).filter(|(row, label)| best(row) == **label as usize).count() as f64 / set.len() as f64
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (data, out) = (Path::new(&args[1]), Path::new(&args[2]));
    let number = |i: usize, default: f64| args.get(i).map_or(default, |a| a.parse().unwrap());
    std::fs::create_dir_all(out).unwrap();
    let load = |name: &str| read(&data.join(name), None, &Options { size: Some(16), ..Options::default() }).unwrap();
    let (fonts, real) = (load("fontdigits.safetensors"), load("optdigits.safetensors"));
    println!("{} source images, styles {:?}", fonts.len(), fonts.meta.styles);
    let params = generator_pretrain::Params {
        steps: number(3, 1000.0) as usize,
        width: number(4, 32.0) as usize,
        lr: number(5, 2e-3),
        ..Default::default()
    };
    let start = Instant::now();
    let train = || {
        generator_pretrain::train(&params, &fonts, &mut |p| {
            if p.step % 100 == 0 {
                println!("step {} loss {:.4} {:.1} ms/step", p.step, p.loss.unwrap(), start.elapsed().as_secs_f64() * 1e3 / p.step as f64);
            }
        })
        .unwrap()
        .0
    };
    let kept = out.join("generator");
    let generator = if kept.exists() { Generator::read(&kept).unwrap() } else { train() };
    println!("{} parameters, {:.1} s", generator.params.count(), start.elapsed().as_secs_f64());
    generator.write(&kept).unwrap();
    let styles = fonts.meta.styles.clone().unwrap();
    let draw = split(&real, Share::Shots(5), 0).unwrap();
    let (few, rest) = (real.subset(&draw.train).unwrap(), real.subset(&draw.test).unwrap());
    // The images are face by face, so the last fifth are other faces than the first four.
    let (known, unknown) = parted(&fonts, fonts.len() / 5 * 4);
    let (written, unseen) = parted(&rest, rest.len() / 2);
    let (of_type, of_hand) = (judge(&known), judge(&written));
    let own = [recognised(&of_type, &unknown), recognised(&of_hand, &unseen)].map(|share| 100.0 * share);
    println!("judges: {:.1} % of digits of other typefaces, {:.1} % of other handwritten digits", own[0], own[1]);
    let make = |template: &str, style: Option<&trestle_stages::generator::Style>, name: &str| {
        let start = Instant::now();
        let params = generation::Params { images_per_class: 100, title: template.to_owned(), ..Default::default() };
        let images = generation::generate(&params, &generator, &prompts(&fonts, template), style, &mut |_| ()).unwrap();
        let shares = [&of_type, &of_hand].map(|judge| 100.0 * recognised(judge, &images));
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{template}: {:.1} % recognised by the judge of typefaces, {:.1} % by that of handwriting, {seconds:.2} s",
            shares[0], shares[1]
        );
        std::fs::write(out.join(name), generation::sheet(template, &images).unwrap()).unwrap();
    };
    make("A good photo of the {class}", None, "plain.png");
    for style in &styles {
        make(&format!("A {{class}} photo in the style of {style}"), None, &format!("{style}.png"));
    }
    let start = Instant::now();
    let inversion = style_inversion::Params::default();
    let (style, _) = style_inversion::invert(&inversion, &generator, &few, &mut |p| {
        if p.step % 50 == 0 {
            println!(
                "inversion step {} loss {:.4} {:.1} ms/step",
                p.step,
                p.loss.unwrap(),
                start.elapsed().as_secs_f64() * 1e3 / p.step as f64
            );
        }
    })
    .unwrap();
    println!("{:?}", style_inversion::compare(&inversion, &generator, &style, &rest).unwrap());
    for word in &styles {
        // The same images, times and noise, with a word that the generator was trained with in the place of the token.
        let control = style_inversion::Params { plain: inversion.template.replace("S*", word), ..inversion.clone() };
        let [(_, loss), ..] = style_inversion::compare(&control, &generator, &style, &rest).unwrap();
        println!("held-out loss in the style of {word}: {loss:.4}");
    }
    make("A {class} photo in the style of S*", Some(&style), "learned.png");
    std::fs::write(out.join("real.png"), generation::sheet("Real digits", &few).unwrap()).unwrap();
}
