//! The results of drills as JUnit XML, which build servers show.

use std::fmt::Write as _;

use resurgam_model::report::{DrillReport, DrillResult, Measured};

use crate::commands::drill::Outcome;

/// The document: one suite, with a case for each drill whose time is the measured RTO.
pub(crate) fn document(outcomes: &[Outcome]) -> String {
    let mut cases = String::new();
    let (mut failures, mut errors, mut total) = (0, 0, 0.0);
    for (scenario, outcome) in outcomes {
        let (on, seconds, trouble) = match outcome {
            Ok(report) => {
                let seconds = report.rto.measured_ms.unwrap_or_default() as f64 / 1000.0;
                let failed = report.result != DrillResult::Recovered;
                failures += u32::from(failed);
                let trouble = failed.then(|| ("failure", told(report)));
                (report.deployment.as_str(), seconds, trouble)
            }
            Err(failure) => {
                errors += 1;
                ("", 0.0, Some(("error", failure.message.clone())))
            }
        };
        total += seconds;
        let on = if on.is_empty() { "drill".to_owned() } else { escaped(on) };
        let open =
            format!("    <testcase classname=\"{on}\" name=\"{scenario}\" time=\"{seconds:.3}\"");
        let _ = match trouble {
            None => writeln!(cases, "{open}/>"),
            Some((kind, text)) => writeln!(
                cases,
                "{open}>\n      <{kind} message=\"{}\"/>\n    </testcase>",
                escaped(&text)
            ),
        };
    }
    let tests = outcomes.len();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"resurgam drill\" \
         tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{total:.3}\">\n{cases}  \
         </testsuite>\n</testsuites>\n"
    )
}

/// Why a drill did not end well, in one line.
fn told(report: &DrillReport) -> String {
    let beside = |what: &str, measured: &Measured| {
        let found = measured.measured_ms.map_or("never".to_owned(), |ms| format!("{ms} ms"));
        format!("{what} {found} of {} ms", measured.objective_ms)
    };
    let split = if report.split_brain { ", two wrote at once" } else { "" };
    let result = match report.result {
        DrillResult::Refused => "refused as not safe",
        DrillResult::Failed | DrillResult::Recovered => "failed",
    };
    format!(
        "{result}: {}, {}, {} of {} acknowledged lost, {} done twice{split}",
        beside("RTO", &report.rto),
        beside("RPO", &report.rpo),
        report.lost,
        report.acknowledged,
        report.duplicated
    )
}

/// Text for an attribute. Characters that XML cannot hold are left out.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' => safe.push_str("&#10;"),
            '\t' => safe.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use resurgam_model::{Duration, Scenario, Severity};

    use super::*;
    use crate::failure::Failure;

    fn report(rto_ms: Option<u64>, result: DrillResult) -> DrillReport {
        let objective = Duration::from_secs(60);
        DrillReport {
            scenario: Scenario::Api,
            severity: Severity::P1,
            deployment: "local/sqlite".to_owned(),
            fault: "kill".to_owned(),
            started_at: "2026-11-25T12:00:00Z".parse().unwrap(),
            detection_ms: Some(1),
            steps: Vec::new(),
            rto: Measured::new(objective, rto_ms.map(Duration::from_millis)),
            rpo: Measured::new(objective, Some(Duration::from_millis(0))),
            acknowledged: 10,
            lost: 0,
            duplicated: 0,
            split_brain: false,
            fence: Vec::new(),
            result,
        }
    }

    #[test]
    fn good_ones_failed_ones_and_those_that_could_not_be_run_are_told_apart() {
        let outcomes = [
            (Scenario::Api, Ok(report(Some(1234), DrillResult::Recovered))),
            (Scenario::WorkerPool, Ok(report(None, DrillResult::Failed))),
            (Scenario::FullStop, Err(Failure::new("no \"<room>\" & no\u{7} time\nat all"))),
        ];
        insta::assert_snapshot!(document(&outcomes), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites>
          <testsuite name="resurgam drill" tests="3" failures="1" errors="1" time="1.234">
            <testcase classname="local/sqlite" name="api" time="1.234"/>
            <testcase classname="local/sqlite" name="worker-pool" time="0.000">
              <failure message="failed: RTO never of 60000 ms, RPO 0 ms of 60000 ms, 0 of 10 acknowledged lost, 0 done twice"/>
            </testcase>
            <testcase classname="drill" name="full-stop" time="0.000">
              <error message="no &quot;&lt;room&gt;&quot; &amp; no time&#10;at all"/>
            </testcase>
          </testsuite>
        </testsuites>
        "#);
    }
}
