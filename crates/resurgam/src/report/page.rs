//! The report as one page that needs nothing else: no script, no picture, no address from elsewhere.

use std::fmt::Write as _;

use resurgam_model::Timestamp;
use resurgam_model::report::{DrillReport, DrillResult, Measured, StepReport};

use super::chart::{self, Point};
use super::{Account, Practice, Report, Spread, seconds};
use crate::commands::status::word_of;

const STYLE: &str = "
:root{--ink:#1b1f24;--soft:#57606a;--paper:#fff;--line:#d8dee4;--good:#1a7f37;--bad:#cf222e;--open:#9a6700}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#8d96a0;--paper:#0d1117;--line:#30363d;--good:#3fb950;--bad:#f85149;--open:#d29922}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;padding:0 1rem}
h1,h2,h3{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{margin-bottom:.3rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}
.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}.open{color:var(--open)}
details{margin:.3rem 0;border-left:3px solid var(--line);padding-left:.7rem}summary{cursor:pointer}
pre{overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;background:color-mix(in srgb,var(--ink) 6%,transparent);padding:.5rem}
svg{width:100%;height:auto;font-size:12px}svg text{fill:var(--soft)}
svg .objective{stroke:var(--soft);stroke-dasharray:5 4}svg .met{fill:var(--good)}svg .missed{fill:var(--bad)}svg .skipped{fill:var(--line)}svg .open{fill:var(--open)}
";

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let name = escape(&report.deployment);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Recoveries of {name}</title><style>{STYLE}</style></head>\n<body>\n\
         <h1>Recoveries of {name}</h1>\n<p class=\"soft\">Made {}. Times are UTC.</p>\n",
        clock(report.made_at)
    );
    summary(&mut html, &report.scenarios);
    html.push_str("<h2>Drills</h2>\n");
    if report.scenarios.iter().all(|practice| practice.drills.is_empty()) {
        html.push_str("<p>None yet: nobody knows how long a recovery takes here.</p>\n");
    }
    for practice in report.scenarios.iter().filter(|practice| !practice.drills.is_empty()) {
        drills(&mut html, practice);
    }
    html.push_str("<h2>Incidents</h2>\n");
    if report.incidents.is_empty() {
        html.push_str("<p>None.</p>\n");
    }
    for account in &report.incidents {
        incident(&mut html, account);
    }
    if let Some(head) = &report.journal_head {
        let _ = writeln!(
            html,
            "<p class=\"soft\">Incidents are from the recovery journal up to its entry <code>{head}</code>. Whether that is still \
             a part of it, <code>resurgam journal verify --expect {head}</code> tells.</p>"
        );
    }
    html.push_str("</body></html>\n");
    html
}

fn summary(html: &mut String, scenarios: &[Practice]) {
    html.push_str(
        "<table><thead><tr><th>scenario</th><th></th><th>drills</th><th>detected</th><th>RTO: least, middle, most</th>\
         <th>of</th><th>RPO: most</th><th>of</th><th>last</th></tr></thead><tbody>\n",
    );
    for practice in scenarios {
        let last = practice.drills.last().map_or("never".to_owned(), |drill| day(drill.started_at));
        let count = match practice.failed {
            0 => practice.drills.len().to_string(),
            failed => {
                format!("{}, <span class=\"bad\">{failed} failed</span>", practice.drills.len())
            }
        };
        let spread = |spread: Option<Spread>| {
            spread.map_or("–".to_owned(), |spread| {
                let [min, median, max] =
                    [spread.min_ms, spread.median_ms, spread.max_ms].map(seconds);
                format!("{min}, {median}, {max}")
            })
        };
        let most = |spread: Option<Spread>, objective: u64| {
            let Some(spread) = spread else { return "–".to_owned() };
            let class = if spread.max_ms > objective { "bad" } else { "good" };
            format!("<span class=\"{class}\">{}</span>", seconds(spread.max_ms))
        };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{count}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{last}</td></tr>",
            practice.scenario,
            practice.severity,
            practice.detection.map_or("–".to_owned(), |d| seconds(d.median_ms)),
            spread(practice.rto),
            seconds(practice.rto_objective_ms),
            most(practice.rpo, practice.rpo_objective_ms),
            seconds(practice.rpo_objective_ms),
        );
    }
    html.push_str("</tbody></table>\n");
}

fn drills(html: &mut String, practice: &Practice) {
    let _ = writeln!(
        html,
        "<h3>{}</h3>\n<p class=\"soft\">{}</p>",
        practice.scenario,
        escape(practice.scenario.summary())
    );
    for (what, objective, measured) in [
        ("RTO", practice.rto_objective_ms, (|drill| drill.rto) as fn(&DrillReport) -> Measured),
        ("RPO", practice.rpo_objective_ms, |drill| drill.rpo),
    ] {
        // Nothing was lost, and nothing may be: there is nothing to see.
        let all_zero = practice.drills.iter().all(|drill| measured(drill).measured_ms == Some(0));
        if all_zero {
            let _ = writeln!(html, "<p>{what}: nothing was ever lost.</p>");
            continue;
        }
        let points: Vec<_> = practice
            .drills
            .iter()
            .map(|drill| {
                let Measured { measured_ms, met, .. } = measured(drill);
                let value = measured_ms.map_or("never".to_owned(), seconds);
                let title = format!("{}, {}: {value}", clock(drill.started_at), drill.fault);
                Point { ms: measured_ms, met, title }
            })
            .collect();
        let _ = writeln!(
            html,
            "<figure><figcaption>{what}; the line is what is promised</figcaption>{}</figure>",
            chart::row(&points, objective)
        );
    }
    for drill in practice.drills.iter().rev() {
        let (class, word) = match drill.result {
            DrillResult::Recovered => ("good", "recovered"),
            DrillResult::Failed => ("bad", "failed"),
            DrillResult::Refused => ("open", "refused"),
        };
        let took = drill.rto.measured_ms.map_or("never".to_owned(), seconds);
        let _ = writeln!(
            html,
            "<details><summary>{} {}: <span class=\"{class}\">{word}</span>, RTO {took}, {} acknowledged, {} lost, {} done twice</summary>",
            clock(drill.started_at),
            escape(&drill.fault),
            drill.acknowledged,
            drill.lost,
            drill.duplicated
        );
        steps(html, &drill.steps);
        if !drill.fence.is_empty() {
            let split =
                if drill.split_brain { "TWO PRIMARIES TOOK WRITES" } else { "all were refused" };
            let _ = writeln!(
                html,
                "<p>Writes tried on the former primary ({split}):</p><pre>{}</pre>",
                escape(&drill.fence.join("\n"))
            );
        }
        html.push_str("</details>\n");
    }
}

fn steps(html: &mut String, steps: &[StepReport]) {
    if steps.is_empty() {
        return;
    }
    html.push_str(&chart::bars(steps));
    html.push_str("<table><tbody>\n");
    for step in steps {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&step.name),
            step.status.as_str(),
            seconds(step.duration_ms),
            escape(&step.detail)
        );
    }
    html.push_str("</tbody></table>\n");
}

fn incident(html: &mut String, account: &Account) {
    let Account { incident, timeline, evidence, .. } = account;
    let restored = incident.restored_at.map_or("not restored".to_owned(), |at| {
        let ms = at.as_millisecond().saturating_sub(incident.first_sign.as_millisecond());
        format!("restored after {}", seconds(u64::try_from(ms).unwrap_or_default()))
    });
    let _ = write!(
        html,
        "<details><summary>{} {} {} of {}: <span class=\"{}\">{}</span>, {restored}</summary>\n<p>{}</p>\n",
        clock(incident.opened_at),
        incident.severity,
        incident.scenario,
        escape(incident.component.as_str()),
        match word_of(&incident.state).as_str() {
            "recovered" | "false-alarm" | "resolved" => "good",
            "open" => "open",
            _ => "bad",
        },
        word_of(&incident.state),
        escape(&incident.cause)
    );
    steps(html, &account.steps);
    let lines: Vec<_> =
        timeline.iter().map(|(at, line)| format!("{} {line}", clock(*at))).collect();
    let _ = writeln!(html, "<p>Time line:</p><pre>{}</pre>", escape(&lines.join("\n")));
    for (at, text) in evidence {
        let _ = writeln!(
            html,
            "<details><summary>evidence of {}</summary><pre>{}</pre></details>",
            clock(*at),
            escape(text)
        );
    }
    html.push_str("</details>\n");
}

fn clock(at: Timestamp) -> String {
    at.strftime("%F %T").to_string()
}

fn day(at: Timestamp) -> String {
    at.strftime("%F").to_string()
}

/// Text that means nothing to a browser.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // What XML does not allow, such as the colours of a terminal.
            control if control.is_control() && !matches!(control, '\n' | '\t') => {}
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_stays_text() {
        let nasty = "<script>alert('x')</script> & \"y\"\u{1b}[31m";
        assert_eq!(
            escape(nasty),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot;[31m"
        );
    }
}
