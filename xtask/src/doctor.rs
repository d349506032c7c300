//! `cargo xtask doctor`: what this machine offers, and how to get what it lacks. Compiles nothing.

mod finding;
pub mod gpu;
mod probe;
pub mod trusted;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use finding::{Finding, Status};

use crate::table::table;
use crate::workspace::Workspace;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Say what an error code or message of SGX or Gramine means, and nothing else
    #[arg(long, value_name = "CODE", allow_hyphen_values = true, conflicts_with = "json")]
    code: Option<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    /// Whether experiments run on the CPU with the simulated enclave.
    cpu_path_works: bool,
    /// Features to build the worker with: `cuda`, `vulkan`, `wgpu` or none.
    worker_features: Option<&'static str>,
    findings: Vec<Finding>,
}

/// Prints what there is; exit code 0 when the CPU path works, 3 otherwise. With a code, explains the code.
pub fn run(workspace: &Workspace, args: &DoctorArgs) -> Result<u8> {
    if let Some(code) = &args.code {
        print!("{}", trusted::explain(code)?);
        return Ok(0);
    }
    let (worker_features, gpus) = gpu::findings();
    let mut findings = probe::findings(workspace);
    findings.extend(gpus);
    findings.extend(trusted::findings());
    let cpu_path_works = findings.iter().all(|finding| finding.status != Status::Required);
    let report = Report { schema: 1, cpu_path_works, worker_features, findings };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", plain(&report));
    }
    Ok(if cpu_path_works { 0 } else { 3 })
}

fn plain(report: &Report) -> String {
    let row = |finding: &Finding| {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Missing => "missing",
            Status::Required => "REQUIRED",
        };
        vec![finding.what.to_owned(), status.to_owned(), finding.detail.clone()]
    };
    let rows: Vec<_> = report.findings.iter().map(row).collect();
    let mut text = table(&["what", "status", "detail"], &rows);
    let fixes: Vec<_> = report.findings.iter().filter_map(|f| Some(vec![f.what.to_owned(), f.fix.clone()?])).collect();
    if !fixes.is_empty() {
        text.push_str(&format!("\n{}", table(&["for", "do"], &fixes)));
    }
    text.push_str(match report.cpu_path_works {
        true => "\nThe CPU path works: `cargo xtask demo` runs here with a simulated enclave.\n",
        false => "\nThe CPU path does not work: install what is REQUIRED above.\n",
    });
    match report.worker_features {
        Some(features) => text + &format!("For the GPU: `cargo xtask demo --worker-features {features}`.\n"),
        None => text + "No GPU found: the worker computes on the CPU.\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(finding: Finding) -> Report {
        Report { schema: 1, cpu_path_works: true, worker_features: None, findings: vec![finding] }
    }

    #[test]
    fn a_fix_stands_in_a_table_of_its_own() {
        let text = plain(&report(Finding::missing("Gramine", "not on PATH", "install gramine")));
        assert!(text.contains("Gramine  missing  not on PATH\n"), "{text}");
        assert!(text.contains("Gramine  install gramine\n"), "{text}");
    }

    #[test]
    fn findings_are_stable_json() {
        let json = serde_json::to_string(&Finding::required("memory", "1 GiB", "add memory")).expect("it serialises");
        assert_eq!(json, r#"{"what":"memory","status":"required","detail":"1 GiB","fix":"add memory"}"#);
    }
}
