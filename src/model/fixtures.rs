//! Our numbers against transformers', on the tiny models of `tests/fixtures` (see the README there).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::Model;
use super::checkpoint::Weights as File;
use super::config::Head;
use super::generate::{Generation, Sampling};
use super::heads::Packed;
use super::params::{Grads, Params};
use crate::device::Device;
use crate::objective::losses::{Objective, pairwise_loss};
use crate::ops;
use crate::ops::adamw::{Step, Weights};
use crate::random::Stage;
use crate::tensor::Tensor;

struct Fixture {
    model: Model,
    expected: File,
    numbers: serde_json::Value,
    name: String,
}

/// All fixtures on the CPU, and those whose heads the kernels serve on the emulated GPU too, in f32.
fn everywhere(head: Head) -> Vec<Fixture> {
    let mut all = fixtures(&Device::Cpu, head);
    let emulated = fixtures(&Device::parse("emulated").unwrap().in_f32(), head);
    assert!(emulated.len() >= if head == Head::Language { 8 } else { 3 }, "{} on the GPU", emulated.len());
    all.extend(emulated.into_iter().map(|f| Fixture { name: format!("{} on the emulated GPU", f.name), ..f }));
    all
}

fn fixtures(device: &Device, head: Head) -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    let fixture = |dir: &PathBuf| {
        let model = match Model::load(device, dir) {
            Err(error) if error.id() == "model-beyond-kernels" => return None,
            model => model.unwrap(),
        };
        Some(Fixture {
            model,
            expected: File::open_file(&dir.join("expected.safetensors")).unwrap(),
            numbers: serde_json::from_str(&std::fs::read_to_string(dir.join("expected.json")).unwrap()).unwrap(),
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
        })
    };
    let all: Vec<Fixture> = dirs.iter().filter_map(fixture).filter(|f| f.model.config().head == head).collect();
    let complete = if head == Head::Language { 15 } else { 5 };
    assert!(*device != Device::Cpu || all.len() >= complete, "the fixtures are complete");
    all
}

impl Fixture {
    fn floats(&self, name: &str) -> Vec<f32> {
        self.expected.read_f32(name, self.expected.shape(name).unwrap()).unwrap()
    }

    fn ints(&self, name: &str) -> Vec<i32> {
        let dir = self.model.source().unwrap().join("expected.safetensors");
        let bytes = std::fs::read(dir).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn number(&self, name: &str) -> f64 {
        self.numbers[name].as_f64().unwrap()
    }

    fn sequences(&self) -> Vec<Vec<i32>> {
        let (ids, borders) = (self.ints("input_ids"), self.ints("cu_seqlens"));
        borders.windows(2).map(|w| ids[w[0] as usize..w[1] as usize].to_vec()).collect()
    }

    fn packed(&self) -> Packed {
        Packed::new(&self.model, self.sequences().iter().map(|s| &s[..])).unwrap()
    }

    /// Every gradient within 5e-5 relative L2 of the fixture's.
    fn assert_gradients(&self, prefix: &str, grads: &Grads) {
        grads.check_complete().unwrap();
        for (part, offset) in self.model.params.layout().parts() {
            let ours = Params::stored(&grads.flat, part, offset).unwrap();
            let theirs = self.floats(&format!("{prefix}.{}", part.name));
            let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
            let norm = distance(&theirs, &vec![0.0; theirs.len()]);
            let error = (distance(&ours, &theirs) / norm.max(1e-20)).sqrt();
            assert!(error <= 5e-5, "{} {prefix}.{}: {error:e}", self.name, part.name);
        }
    }
}

fn assert_close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: {worst:e} apart");
}

#[test]
fn logits_and_log_probabilities_agree() {
    for fixture in everywhere(Head::Language) {
        let (model, packed) = (&fixture.model, fixture.packed());
        let weights = model.frozen().unwrap();
        let hidden = model.hidden(&weights, &packed).unwrap();
        let logits = ops::token_logprobs::logits(&hidden, weights.get(model.network.head)).unwrap();
        assert_close(&fixture.name, &logits.to_f32().unwrap(), &fixture.floats("logits"), 5e-5);
        let (rows, targets) = packed.targets(|_, _| true);
        for (temperature, suffix) in [(1.0, "t1"), (0.7, "t07")] {
            let head = model.token_logprobs(&weights, &hidden, [&rows, &targets], temperature).unwrap();
            for (ours, name) in [(&head.logprobs, "logprobs"), (&head.entropy, "entropy")] {
                let name = format!("{name}_{suffix}");
                assert_close(
                    &format!("{} {name}", fixture.name),
                    &ours.to_f32().unwrap(),
                    &fixture.floats(&name),
                    5e-5,
                );
            }
        }
    }
}

#[test]
fn loss_gradients_and_step_agree() {
    for fixture in everywhere(Head::Language) {
        let (model, packed) = (&fixture.model, fixture.packed());
        let grads = Grads::new(&model.params).unwrap();
        let mask = fixture.ints("loss_mask");
        let mut next = 0;
        let (rows, targets) = packed.targets(|_, _| true);
        let kept: Vec<(i32, i32)> =
            rows.into_iter().zip(targets).zip(&mask).filter(|(_, m)| **m != 0).map(|(r, _)| r).collect();
        next += kept.len();
        let (rows, targets): (Vec<i32>, Vec<i32>) = kept.into_iter().unzip();
        let weights = model.trained(&grads).unwrap();
        let hidden = model.hidden(&weights, &packed).unwrap();
        let objective = Objective::Likelihood { scale: 1.0 / next as f64 };
        let loss = model.head_loss(&weights, &hidden, [&rows, &targets], 1.0, &objective).unwrap();
        let (ours, theirs) = (loss.value().unwrap(), fixture.number("loss"));
        assert!((ours - theirs).abs() <= 1e-5, "{}: loss {ours} {theirs}", fixture.name);
        drop(hidden);
        loss.root.backward().unwrap();
        fixture.assert_gradients("grad", &grads);
        let norm = ops::global_norm::clip(&grads.flat, 0.0).unwrap().state.to_f64().unwrap()[2];
        assert!((norm / fixture.number("grad_norm") - 1.0).abs() < 1e-4, "{}: norm {norm}", fixture.name);
        if fixture.expected.contains("adamw.model.norm.weight")
            || fixture.expected.contains("adamw.transformer.ln_f.weight")
        {
            fixture.assert_step();
        }
    }
}

impl Fixture {
    /// One AdamW step on the fixture's own gradients: the first step is close to lr x sign(gradient), so rounding in a
    /// gradient that is zero in truth would decide.
    fn assert_step(&self) {
        let params = self.model.params.duplicate().unwrap();
        let mut grads = params.duplicate().unwrap();
        grads.fill(|part| Ok(self.floats(&format!("grad.{}", part.name)))).unwrap();
        let clip = ops::global_norm::clip(&grads.flat, 1.0).unwrap();
        let zeros = || Tensor::zeros(params.flat.device(), params.flat.dtype(), params.flat.shape()).unwrap();
        let step = Step { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, t: 1 };
        let weights = Weights { masters: &params.flat, rounded: None, decayed: params.layout().matrices() };
        ops::adamw::adamw(&weights, [&zeros(), &zeros()], &grads.flat, &step, &clip).unwrap();
        for (part, offset) in params.layout().parts() {
            let ours = Params::stored(&params.flat, part, offset).unwrap();
            assert_close(
                &format!("{} adamw.{}", self.name, part.name),
                &ours,
                &self.floats(&format!("adamw.{}", part.name)),
                2e-6,
            );
        }
    }
}

#[test]
fn greedy_tokens_agree() {
    for fixture in everywhere(Head::Language) {
        let prompt = fixture.ints("greedy_prompt");
        let generation = Generation {
            sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 },
            max_new_tokens: 32,
            stop: &[],
            seed: 0,
            stage: Stage::Generate,
            step: 0,
            first_row: 0,
            slots: None,
        };
        let responses =
            fixture.model.generate(&fixture.model.frozen().unwrap(), &[&prompt], &generation).unwrap().responses;
        assert_eq!(responses[0].tokens, fixture.ints("greedy_ids"), "{}", fixture.name);
    }
}

/// A response that is handed out as it comes is the one that is given at once, on the CPU token by token; and it can
/// be stopped on its way.
#[test]
fn a_stream_is_the_response() {
    let options = |temperature: f64, first_row: u32| Generation {
        sampling: Sampling { temperature, top_k: 0, top_p: 0.95 },
        max_new_tokens: 20,
        stop: &[0, 2],
        seed: 5,
        stage: Stage::Generate,
        step: 0,
        first_row,
        slots: None,
    };
    for fixture in everywhere(Head::Language) {
        let prompts = fixture.sequences();
        let prompts: Vec<&[i32]> = prompts.iter().map(|p| &p[..]).collect();
        let weights = fixture.model.frozen().unwrap();
        let is_cpu = *fixture.model.device() == Device::Cpu;
        for temperature in [0.0, 0.8] {
            let all = fixture.model.generate(&weights, &prompts, &options(temperature, 3)).unwrap().responses;
            for (row, (prompt, wanted)) in prompts.iter().zip(&all).enumerate() {
                let options = options(temperature, 3 + row as u32);
                let (mut given, mut pieces) = (Vec::new(), 0);
                let mut take = |tokens: &[i32]| {
                    given.extend_from_slice(tokens);
                    pieces += 1;
                    Ok(true)
                };
                let response = fixture.model.stream(&weights, prompt, &options, &mut take).unwrap();
                assert_eq!((&response, &given), (wanted, &wanted.tokens), "{} row {row}", fixture.name);
                assert!(!is_cpu || pieces == wanted.tokens.len(), "{pieces} pieces of {given:?}");
                let early = fixture.model.stream(&weights, prompt, &options, &mut |_| Ok(false)).unwrap();
                assert_eq!(early.tokens, wanted.tokens[..1], "{}", fixture.name);
            }
        }
    }
}

#[test]
fn rewards_and_their_gradients_agree() {
    for fixture in everywhere(Head::Score) {
        let (model, packed) = (&fixture.model, fixture.packed());
        let margins = fixture.floats("margin");
        for (name, margins, centering) in [("plain", vec![0.0; margins.len()], 0.0), ("margin", margins, 0.01)] {
            let grads = Grads::new(&model.params).unwrap();
            let weights = model.trained(&grads).unwrap();
            let hidden = model.hidden(&weights, &packed).unwrap();
            let scores = model.scalars(&weights, &hidden, &packed.last_rows()).unwrap();
            assert_close(&fixture.name, &scores.to_f32().unwrap(), &fixture.floats("scores"), 5e-5);
            let n = margins.len();
            let margin = Tensor::new(model.device(), &[n], margins).unwrap();
            let loss = pairwise_loss(&scores, &margin, centering, 1.0 / n as f64).unwrap();
            let (ours, theirs) = (loss.loss.to_f64().unwrap()[0], fixture.number(&format!("loss_{name}")));
            assert!((ours - theirs).abs() <= 1e-5, "{}: {name} {ours} {theirs}", fixture.name);
            drop((scores, hidden));
            loss.root.backward().unwrap();
            fixture.assert_gradients(&format!("grad_{name}"), &grads);
        }
    }
}

/// The log-probabilities that generation hands out are those of the training forward, to the bit, in any company.
#[test]
fn generation_is_on_policy_to_the_bit() {
    for fixture in everywhere(Head::Language) {
        let (model, weights) = (&fixture.model, fixture.model.frozen().unwrap());
        let prompts: Vec<Vec<i32>> =
            (1..12).map(|n| fixture.ints("input_ids").into_iter().cycle().skip(n).take(n).collect()).collect();
        let prompts: Vec<&[i32]> = prompts.iter().map(|p| &p[..]).collect();
        let generation = Generation {
            sampling: Sampling { temperature: 0.7, top_k: 0, top_p: 1.0 },
            max_new_tokens: 20,
            stop: &[1, 2, 3, 4, 5, 6, 7],
            seed: 5,
            stage: Stage::Generate,
            step: 0,
            first_row: 0,
            slots: None,
        };
        let responses = model.generate(&weights, &prompts, &generation).unwrap().responses;
        let alone: HashMap<usize, _> = [0, 7]
            .into_iter()
            .map(|i| {
                (
                    i,
                    model
                        .generate(&weights, &[prompts[i]], &Generation { first_row: i as u32, ..generation.clone() })
                        .unwrap()
                        .responses,
                )
            })
            .collect();
        let sequences: Vec<Vec<i32>> =
            prompts.iter().zip(&responses).map(|(p, r)| [p, &r.tokens[..]].concat()).collect();
        let packed = Packed::new(model, sequences.iter().map(|s| &s[..])).unwrap();
        let (rows, targets) = packed.targets(|b, t| t >= prompts[b].len());
        let hidden = model.hidden(&weights, &packed).unwrap();
        let trained =
            model.token_logprobs(&weights, &hidden, [&rows, &targets], 0.7).unwrap().logprobs.to_f32().unwrap();
        let sampled: Vec<f32> = responses.iter().flat_map(|r| r.logprobs.clone()).collect();
        assert_eq!(sampled, trained, "{}", fixture.name);
        for (i, alone) in alone {
            assert_eq!(alone[0], responses[i], "{} row {i}", fixture.name);
        }
    }
}

#[test]
fn a_saved_model_is_the_model() {
    for head in [Head::Language, Head::Score] {
        for fixture in everywhere(head) {
            let dir = tempfile::tempdir().unwrap();
            fixture.model.save(dir.path(), "card").unwrap();
            let again = Model::load(fixture.model.device(), dir.path()).unwrap();
            assert_eq!(
                again.params.flat.to_f32().unwrap(),
                fixture.model.params.flat.to_f32().unwrap(),
                "{}",
                fixture.name
            );
            let bytes = |dir: &Path| std::fs::read(dir.join("tokenizer.json")).unwrap();
            assert_eq!(bytes(dir.path()), bytes(fixture.model.source().unwrap()));
        }
    }
}
