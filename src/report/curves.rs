//! Curves: the numbers of a stage, step by step. A long one is thinned while it is read, to buckets of rows of which
//! the lowest and the highest value stay, so that no spike is lost and memory does not grow with the run.

use serde_json::{Map, Value, json};

/// Buckets of a curve; up to twice as many points.
const BUCKETS: usize = 512;
/// Different numbers of a stage; what is beyond is counted.
const KEYS_MAX: usize = 250;
/// Numbers of one curve that are not finite and are named one by one.
const ODD_MAX: usize = 50;

type Point = (u64, f64);

/// One number over the steps.
#[derive(Debug)]
struct Curve {
    key: String,
    /// Rows a bucket.
    width: usize,
    /// Rows in the last bucket.
    filled: usize,
    /// The lowest and the highest point of each.
    buckets: Vec<[Point; 2]>,
    last: Option<Point>,
    /// Steps whose number is not finite, and its name.
    odd: Vec<(u64, String)>,
}

impl Curve {
    fn new(key: &str) -> Self {
        Self { key: key.to_owned(), width: 1, filled: 0, buckets: Vec::new(), last: None, odd: Vec::new() }
    }

    fn push(&mut self, point: Point) {
        self.last = Some(point);
        match self.buckets.last_mut() {
            Some(bucket) if self.filled < self.width => {
                widen(bucket, [point, point]);
                self.filled += 1;
            }
            _ => {
                if self.buckets.len() == BUCKETS {
                    self.halve();
                }
                self.buckets.push([point, point]);
                self.filled = 1;
            }
        }
    }

    /// Makes one bucket of each two.
    fn halve(&mut self) {
        let merged = self.buckets.chunks(2).filter_map(|two| {
            let (mut bucket, rest) = two.split_first().map(|(first, rest)| (*first, rest))?;
            rest.iter().for_each(|other| widen(&mut bucket, *other));
            Some(bucket)
        });
        self.buckets = merged.collect();
        self.width *= 2;
    }

    /// The points that are left, by step.
    fn points(&self) -> Vec<Point> {
        let both = |[low, high]: &[Point; 2]| if low.0 <= high.0 { [*low, *high] } else { [*high, *low] };
        let mut points: Vec<Point> = self.buckets.iter().flat_map(both).chain(self.last).collect();
        points.sort_by_key(|point| point.0);
        points.dedup();
        points
    }
}

fn widen(bucket: &mut [Point; 2], [low, high]: [Point; 2]) {
    if low.1 < bucket[0].1 {
        bucket[0] = low;
    }
    if high.1 > bucket[1].1 {
        bucket[1] = high;
    }
}

/// The curves of a stage, in the order in which their names came.
#[derive(Debug, Default)]
pub(super) struct Curves {
    curves: Vec<Curve>,
    rows: u64,
    /// Names beyond `KEYS_MAX`, each as often as it came.
    left_out: u64,
}

impl Curves {
    /// Takes in a row's numbers.
    pub(super) fn take(&mut self, step: u64, row: &Map<String, Value>) {
        self.rows += 1;
        for (key, value) in row.iter().filter(|(key, _)| !["stage", "step"].contains(&key.as_str())) {
            let name = || value.as_str().filter(|text| text.parse::<f64>().is_ok_and(|x| !x.is_finite()));
            let number = value.as_f64();
            if number.is_none() && name().is_none() {
                continue;
            }
            let at = match self.curves.iter().position(|curve| curve.key == *key) {
                Some(at) => at,
                None if self.curves.len() == KEYS_MAX => {
                    self.left_out += 1;
                    continue;
                }
                None => {
                    self.curves.push(Curve::new(key));
                    self.curves.len() - 1
                }
            };
            let Some(curve) = self.curves.get_mut(at) else { continue };
            match (number, name()) {
                (Some(x), _) => curve.push((step, x)),
                (None, Some(name)) if curve.odd.len() < ODD_MAX => curve.odd.push((step, name.to_owned())),
                _ => {}
            }
        }
    }

    /// The largest value of a curve.
    pub(super) fn highest(&self, key: &str) -> Option<f64> {
        let curve = self.curves.iter().find(|curve| curve.key == key)?;
        curve.buckets.iter().map(|bucket| bucket[1].1).max_by(f64::total_cmp)
    }

    /// Rows that were taken in.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// For the page: `axes` (lists of steps that curves share) and `series`, each with its key, the index of its axis,
    /// its values, how many rows a bucket has, and what was not finite.
    pub(super) fn to_json(&self) -> Value {
        let (mut axes, mut series): (Vec<Vec<u64>>, Vec<Value>) = (Vec::new(), Vec::new());
        for curve in &self.curves {
            let (steps, values): (Vec<u64>, Vec<f64>) = curve.points().into_iter().unzip();
            let values: Vec<f64> = values.into_iter().map(brief).collect();
            let axis = axes.iter().position(|axis| *axis == steps).unwrap_or_else(|| {
                axes.push(steps);
                axes.len() - 1
            });
            let mut entry = json!({ "key": curve.key, "axis": axis, "values": values });
            if curve.width > 1 {
                entry["width"] = json!(curve.width);
            }
            if !curve.odd.is_empty() {
                entry["odd"] = json!(curve.odd);
            }
            series.push(entry);
        }
        json!({ "rows": self.rows, "axes": axes, "series": series, "left_out": self.left_out })
    }
}

/// A number with seven significant digits: a page shows fewer, and its size counts.
pub(super) fn brief(x: f64) -> f64 {
    format!("{x:.6e}").parse().unwrap_or(x)
}
