//! Trains the generator of the quickstart and shows what it can do: `cargo run --release -p trestle-stages --example generate -- pipelines/data OUT [steps] [width] [lr]`.
//!
//! Expect about 2 ms a step and channel-square on two cores; the sheets end up in OUT, and a generator that is there already is used again.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use trestle_stages::data::{ClassPrompts, ImageSet, Prompts};
use trestle_stages::generator::Generator;
use trestle_stages::model::{Arch, Config, Model};
use trestle_stages::train::{Length, Recipe, Source};
use trestle_stages::{generation, generator_pretrain, style_inversion};

fn read(path: &Path, styles: bool) -> ImageSet {
    let bytes = std::fs::read(path).unwrap();
    let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers =
        |name: &str| file.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<Vec<_>>();
    let names = |key: &str| serde_json::from_str::<Vec<String>>(&meta.metadata().as_ref().unwrap()[key]).unwrap();
    let images = file.tensor("images").unwrap();
    let shape = images.shape();
    let set =
        ImageSet::new(images.data().to_vec(), numbers("labels"), (shape[1], shape[2], shape[3]), names("classes"), "example").unwrap();
    if styles { set.with_styles(numbers("styles"), names("styles")).unwrap() } else { set }
}

fn prompts(set: &ImageSet, template: &str) -> Prompts {
    let classes =
        set.meta.classes.iter().map(|name| ClassPrompts { name: name.clone(), prompts: vec![template.replace("{class}", name)] }).collect();
    Prompts { templates: vec![template.to_owned()], classes }
}

/// A classifier of real images of the source.
fn judge(set: &ImageSet) -> Model {
    let mut model = Model::new(Config::for_images(Arch::default(), 32, set).unwrap(), 0).unwrap();
    let recipe = Recipe { length: Length::Steps(300), ..Default::default() };
    trestle_stages::train::train(&mut model, &[Source { set, share: 1.0 }], &[], &recipe, 0, |_, _| ()).unwrap();
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
    let fonts = read(&data.join("fontdigits.safetensors"), true);
    let real = read(&data.join("optdigits.safetensors"), false).resized(16, 16, trestle_stages::data::Filter::Bilinear).unwrap();
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
    let start = Instant::now();
    let judge = judge(&fonts);
    println!("judge: {:.1} % of the real images, {:.1} s", 100.0 * recognised(&judge, &fonts), start.elapsed().as_secs_f64());
    let make = |template: &str, style: Option<&trestle_stages::generator::Style>, name: &str| {
        let start = Instant::now();
        let params = generation::Params { images_per_class: 20, title: template.to_owned(), ..Default::default() };
        let images = generation::generate(&params, &generator, &prompts(&fonts, template), style, &mut |_| ()).unwrap();
        let share = 100.0 * recognised(&judge, &images);
        println!("{template}: {} images, {share:.1} % recognised, {:.2} s", images.len(), start.elapsed().as_secs_f64());
        std::fs::write(out.join(name), generation::sheet(template, &images).unwrap()).unwrap();
    };
    make("A good photo of the {class}", None, "plain.png");
    for style in fonts.meta.styles.as_ref().unwrap() {
        make(&format!("A {{class}} photo in the style of {style}"), None, &format!("{style}.png"));
    }
    let start = Instant::now();
    let shots: Vec<usize> =
        (0..10u32).flat_map(|class| (0..real.len()).filter(|&i| real.labels[i] == class).take(5).collect::<Vec<_>>()).collect();
    let few = real.subset(&shots).unwrap();
    let rest: Vec<usize> = (0..real.len()).filter(|i| !shots.contains(i)).collect();
    let heldout = real.subset(&rest).unwrap();
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
    println!("{:?}", style_inversion::compare(&inversion, &generator, &style, &heldout).unwrap());
    make("A {class} photo in the style of S*", Some(&style), "learned.png");
    std::fs::write(out.join("real.png"), generation::sheet("Real digits", &few).unwrap()).unwrap();
}
