//! Manifests: what the committed ones say, and that every plan makes a valid one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use asymflow_enclave::manifest::{InsecureOption, ManifestError, ManifestFor, ManifestSpec, Mount, TrustedFile};
use proptest::prelude::*;

/// Set to rewrite the committed manifests.
const UPDATE: &str = "ASYMFLOW_UPDATE";

fn mount(host: &str, path: &str) -> Mount {
    Mount { host: host.into(), path: path.into() }
}

/// An enclave that serves a model.
fn serving() -> ManifestSpec {
    let mut spec = ManifestSpec::new("asymflow-enclaved", 4, 3, 600 << 20);
    spec.program_sha256 = Some("AB".repeat(32));
    spec.arguments = ["serve", "--model", "/app/data/model", "--listen", "0.0.0.0:7000", "--state", "/state/ledger"]
        .map(str::to_owned)
        .into();
    spec.trusted_files = vec![TrustedFile { mount: mount("model", "/app/data/model"), sha256: None }];
    spec.sealed_folders = vec![mount("ledger", "/state/ledger"), mount("guard/", "/state/guard")];
    (spec.isv_prod_id, spec.isv_svn) = (1, 3);
    spec
}

/// The same under `gramine-direct`, with everything else that a manifest can have.
fn direct() -> ManifestSpec {
    let mut spec = serving();
    spec.runtime = ManifestFor::GramineDirect;
    spec.environment.insert("GREETING".into(), "say \"hello\" \\ {{ 1 + 1 }}".into());
    spec.encrypted_folders = vec![mount("cache", "/state/cache")];
    spec.shared_memory = vec!["asymflow-ring-0".into()];
    spec.insecure =
        vec![InsecureOption::FixedKey("00112233445566778899aabbccddeeff".into()), InsecureOption::DebugEnclave];
    spec
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests").join(name);
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, committed, "{name} differs; {UPDATE}=1 rewrites it");
}

#[test]
fn the_committed_manifests_are_those_that_are_written() {
    compare("serve-sgx.manifest.template", serving().render().unwrap().text());
    compare("serve-direct.manifest.template", direct().render().unwrap().text());
}

fn parsed(spec: &ManifestSpec) -> toml::Table {
    let manifest = spec.render().unwrap();
    toml::from_str(manifest.text()).unwrap_or_else(|error| panic!("{error}\n{}", manifest.text()))
}

#[test]
fn size_and_threads_follow_from_the_plan() {
    let spec = serving();
    // 1 main, 3 of Gramine's, 4 that compute, 3 that wait.
    assert_eq!(spec.threads().unwrap(), 11);
    // 900 MiB planned with headroom, 128 MiB fixed, 44 MiB for threads: 1072 MiB.
    assert_eq!(spec.enclave_bytes().unwrap(), 2 << 30);
    let sgx = parsed(&spec)["sgx"].clone();
    assert_eq!(sgx["enclave_size"].as_str(), Some("2048M"));
    assert_eq!(sgx["max_threads"].as_integer(), Some(11));
    assert_eq!(ManifestSpec::new("p", 1, 0, 0).enclave_bytes().unwrap(), 256 << 20);
}

#[test]
fn quotes_are_for_sgx_only_and_only_where_asked_for() {
    let attestation = |spec: &ManifestSpec| parsed(spec)["sgx"].get("remote_attestation").cloned();
    let mut spec = serving();
    assert_eq!(attestation(&spec).unwrap().as_str(), Some("dcap"));
    spec.attestation = false;
    assert_eq!(attestation(&spec), None);
    assert_eq!(attestation(&direct()), None);
}

#[test]
fn encrypted_folders_have_the_signers_key_and_under_direct_none_but_an_insecure_one() {
    let mut spec = serving();
    spec.encrypted_folders = vec![mount("cache", "/state/cache")];
    assert!(spec.render().unwrap().text().contains(r#"uri = "file:cache", key_name = "_sgx_mrsigner""#));
    spec.runtime = ManifestFor::GramineDirect;
    assert_eq!(spec.render(), Err(ManifestError::NoKey));
}

#[test]
fn what_gives_protection_away_is_listed() {
    assert!(serving().render().unwrap().insecure().is_empty());
    let told = direct().render().unwrap().insecure().join("\n");
    assert!(told.starts_with("fixed-key: ") && told.contains("\ndebug-enclave: "), "{told}");
}

#[test]
fn plans_that_contradict_themselves_are_refused() {
    let refused = |change: &dyn Fn(&mut ManifestSpec)| {
        let mut spec = serving();
        change(&mut spec);
        spec.render().unwrap_err().to_string()
    };
    let path = |path: &'static str| refused(&move |spec| spec.sealed_folders[0].path = path.into());
    for bad in ["relative", "/a/../b", "/a//b", "", "/", "/a/"] {
        assert!(path(bad).ends_with("is no absolute path without `..`"), "{bad}");
    }
    assert_eq!(path("/app/data/model"), "two things are mounted at \"/app/data/model\"");
    assert_eq!(path("/tmp"), "two things are mounted at \"/tmp\"");
    let folder = |host: &'static str| refused(&move |spec| spec.sealed_folders[0].host = host.into());
    for above in [".", "./", "/", ".."] {
        assert_eq!(folder(above), format!("\"asymflow-enclaved\" lies in {above:?}, whose files the host may change"));
    }
    let model = |spec: &mut ManifestSpec| spec.trusted_files[0].mount.host = "./ledger/model".into();
    assert_eq!(refused(&model), "\"./ledger/model\" lies in \"ledger\", whose files the host may change");
    assert_eq!(refused(&|spec| spec.program = "a/..".into()), "\"a/..\" is no program");
    assert_eq!(refused(&|spec| spec.arguments.push("a\0b".into())), "\"a\\0b\" contains a zero character");
    assert_eq!(refused(&|spec| drop(spec.environment.insert("A=B".into(), "".into()))), "\"A=B\" is no variable");
    assert_eq!(refused(&|spec| spec.shared_memory.push("a/b".into())), "\"a/b\" is no shared memory object");
    assert_eq!(refused(&|spec| spec.headroom = f64::NAN), "headroom NaN is not between 1 and 16");
    assert_eq!(refused(&|spec| spec.compute_threads = 0), "7 threads are not between 1 and 4096");
    assert_eq!(refused(&|spec| spec.io_threads = u32::MAX), "4294967303 threads are not between 1 and 4096");
    assert!(refused(&|spec| spec.peak_bytes = u64::MAX).contains("is larger than"));
    assert!(refused(&|spec| spec.peak_bytes = 1 << 40).contains("is larger than"));
    assert!(refused(&|spec| spec.program_sha256 = Some("12".into())).contains("is not 64 hexadecimal digits"));
    assert!(refused(&|spec| spec.insecure.push(InsecureOption::FixedKey("12".into()))).contains("not 32 hexadecimal"));
}

/// Names as hostile as a file system allows.
fn name() -> impl Strategy<Value = String> {
    let hostile = prop::sample::select(vec![
        "\"",
        "\\",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "{#",
        "\n",
        "\"\"\"",
        "'",
        "]",
        "=",
        "\u{7f}",
        "é",
    ]);
    let piece = prop_oneof![hostile.prop_map(str::to_owned), "[^/\0]{1,8}"];
    proptest::collection::vec(piece, 1..4).prop_map(|pieces| format!("x{}", pieces.concat()))
}

fn key() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[0-9a-f]{32}")
}

fn spec() -> impl Strategy<Value = ManifestSpec> {
    let names = || proptest::collection::vec(name(), 0..3);
    let plan = (name(), names(), names(), names(), names(), 1_u32..64, 0_u32..64, 0_u64..1 << 36);
    (plan, any::<bool>(), any::<bool>(), key()).prop_map(|(plan, is_direct, has_quotes, key)| {
        let (program, arguments, files, folders, encrypted, compute_threads, io_threads, peak_bytes) = plan;
        let numbered = |folder: &str, names: Vec<String>| -> Vec<Mount> {
            names.iter().enumerate().map(|(i, name)| mount(name, &format!("/{folder}{i}/{name}"))).collect()
        };
        let mut spec = ManifestSpec::new(program, compute_threads, io_threads, peak_bytes);
        spec.runtime = if is_direct { ManifestFor::GramineDirect } else { ManifestFor::GramineSgx };
        spec.environment = arguments.iter().enumerate().map(|(i, text)| (format!("V{i}"), text.clone())).collect();
        spec.arguments = arguments;
        let files = numbered("f", files).into_iter();
        spec.trusted_files = files.map(|mount| TrustedFile { mount, sha256: None }).collect();
        spec.sealed_folders = numbered("s", folders);
        spec.encrypted_folders = if is_direct && key.is_none() { Vec::new() } else { numbered("e", encrypted) };
        spec.attestation = has_quotes;
        spec.insecure = key.map(InsecureOption::FixedKey).into_iter().collect();
        spec
    })
}

/// Every key, and every text, with the texts of Gramine's own template instructions left out.
fn keys_and_texts(value: &toml::Value, keys: &mut Vec<String>, texts: &mut Vec<String>) {
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| {
            keys.push(key.clone());
            keys_and_texts(value, keys, texts);
        }),
        toml::Value::Array(values) => values.iter().for_each(|value| keys_and_texts(value, keys, texts)),
        toml::Value::String(text) => texts.push(text.clone()),
        _ => {}
    }
}

proptest! {
    #[test]
    fn every_plan_makes_valid_toml_with_its_texts_as_they_are(spec in spec()) {
        let manifest = spec.render().unwrap();
        let table: toml::Table = toml::from_str(manifest.text()).unwrap();
        let argv = table["loader"]["argv"].as_array().unwrap();
        let argv: Vec<&str> = argv.iter().skip(1).map(|text| text.as_str().unwrap()).collect();
        prop_assert_eq!(argv, spec.arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let (mut keys, mut texts) = (Vec::new(), Vec::new());
        keys_and_texts(&toml::Value::Table(table), &mut keys, &mut texts);
        for mount in spec.trusted_files.iter().map(|file| &file.mount).chain(&spec.sealed_folders).chain(&spec.encrypted_folders) {
            prop_assert!(texts.contains(&mount.path));
            let uri = format!("file:{}", mount.host);
            prop_assert!(texts.contains(&uri));
        }
        let insecure: Vec<_> = keys.iter().filter(|key| key.contains("insecure__")).collect();
        prop_assert_eq!(insecure.len(), spec.insecure.len(), "{:?}", insecure);
        prop_assert_eq!(manifest.insecure().len(), spec.insecure.len());
    }

    #[test]
    fn the_template_engine_sees_no_instructions_but_ours(spec in spec()) {
        let text = spec.render().unwrap().text().to_owned();
        let ours = ["{{ gramine.libos }}", "{{ gramine.runtimedir() }}", "{{ arch_libdir }}"];
        let rest = ours.iter().fold(text, |rest, instruction| rest.replace(instruction, ""));
        prop_assert!(!["{{", "{%", "{#"].iter().any(|start| rest.contains(start)), "{}", rest);
    }
}
