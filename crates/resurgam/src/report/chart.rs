//! Pictures of drills, as SVG.

use std::fmt::Write as _;

use resurgam_model::report::{StepReport, StepStatus};

use super::page::escape;
use super::seconds;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 150.0;
/// Where the points begin: to the left are words.
const LEFT: f64 = 76.0;
const EDGE: f64 = 14.0;

/// One measurement of a row.
pub(super) struct Point {
    pub(super) ms: Option<u64>,
    pub(super) met: bool,
    /// What is said of it when somebody points at it.
    pub(super) title: String,
}

/// A row of measurements beside their objective. The scale is logarithmic: recoveries take from
/// milliseconds to hours. Those that never came to an end are at the top.
pub(super) fn row(points: &[Point], objective_ms: u64) -> String {
    let values = points.iter().filter_map(|point| point.ms).chain([objective_ms]);
    let (least, most) =
        values.fold((u64::MAX, 1), |(least, most), ms| (least.min(ms.max(1)), most.max(ms)));
    let (low, high) = (log(least) - 0.2, log(most) + 0.2);
    let y = |ms: u64| EDGE + (high - log(ms)) / (high - low) * (HEIGHT - 2.0 * EDGE);
    let step = (WIDTH - LEFT - 2.0 * EDGE) / count(points.len().saturating_sub(1).max(1));
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>{} drills</title>",
        points.len()
    );
    let line = y(objective_ms);
    let _ = write!(
        svg,
        "<line class=\"objective\" x1=\"{LEFT}\" y1=\"{line:.1}\" x2=\"{WIDTH}\" y2=\"{line:.1}\"/>\
         <text x=\"0\" y=\"{:.1}\">{}</text>",
        line + 4.0,
        seconds(objective_ms)
    );
    if least < objective_ms {
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{:.1}\">{}</text>",
            (y(least) + 4.0).max(line + 18.0).min(HEIGHT - 2.0),
            seconds(least)
        );
    }
    for (number, point) in points.iter().enumerate() {
        let x = LEFT + EDGE + step * count(number);
        let (class, y) = match point.ms {
            Some(ms) if point.met => ("met", y(ms)),
            Some(ms) => ("missed", y(ms)),
            None => ("missed", EDGE / 2.0),
        };
        let _ = write!(
            svg,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}</title></circle>",
            escape(&point.title)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// The steps of a recovery as bars, from the beginning of the first.
pub(super) fn bars(steps: &[StepReport]) -> String {
    let begin = steps.iter().map(|step| step.started_at.as_millisecond()).min().unwrap_or_default();
    let offset = |step: &StepReport| {
        u64::try_from(step.started_at.as_millisecond() - begin).unwrap_or_default()
    };
    let total = steps.iter().map(|step| offset(step) + step.duration_ms).max().unwrap_or(1).max(1);
    const ROW: f64 = 20.0;
    const NAMES: f64 = 110.0;
    const TIMES: f64 = 90.0;
    let scale = (WIDTH - NAMES - TIMES) / number(total);
    let height = ROW * count(steps.len()) + 4.0;
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>steps</title>");
    for (place, step) in steps.iter().enumerate() {
        let y = ROW * count(place);
        let x = NAMES + number(offset(step)) * scale;
        let width = (number(step.duration_ms) * scale).max(2.0);
        let class = match step.status {
            StepStatus::Done => "met",
            StepStatus::Skipped => "skipped",
            StepStatus::Started | StepStatus::Waiting => "open",
            StepStatus::Failed | StepStatus::Refused => "missed",
        };
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{text:.1}\">{}</text>\
             <rect class=\"{class}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"12\"><title>{}</title></rect>\
             <text x=\"{after:.1}\" y=\"{text:.1}\">{}</text>",
            escape(&step.name),
            escape(&step.detail),
            seconds(step.duration_ms),
            text = y + 14.0,
            top = y + 4.0,
            after = x + width + 5.0,
        );
    }
    svg.push_str("</svg>");
    svg
}

fn log(ms: u64) -> f64 {
    number(ms.max(1)).log10()
}

#[allow(clippy::cast_precision_loss, reason = "a place in a picture")]
fn number(ms: u64) -> f64 {
    ms as f64
}

#[allow(clippy::cast_precision_loss, reason = "a place in a picture")]
fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_within_the_picture() {
        let point = |ms, met| Point { ms, met, title: "a <b> & c".to_owned() };
        for points in [
            vec![],
            vec![point(Some(0), true)],
            vec![point(None, false), point(Some(86_400_000), false), point(Some(3), true)],
        ] {
            for objective in [0, 1, 900_000] {
                let svg = row(&points, objective);
                assert_eq!(svg.matches("<circle").count(), points.len());
                assert!(!svg.contains("<b>") && !svg.contains("NaN") && !svg.contains("inf"));
                for place in svg.split("cy=\"").skip(1) {
                    let y: f64 = place.split('"').next().unwrap().parse().unwrap();
                    assert!((0.0..=HEIGHT).contains(&y), "{y}");
                }
            }
        }
    }
}
