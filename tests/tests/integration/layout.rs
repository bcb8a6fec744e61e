//! The dependency rules between crates and between files, as stated in ARCHITECTURE.md.
//!
//! Seen to fail with the store's crate as a dependency of the policy crate, with a type of `rest` in `grpc`, and with
//! the memory store in the service.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use petgraph::{algo::tarjan_scc, graphmap::DiGraphMap};
use syn::{ItemUse, UseTree, visit::Visit};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The direct dependencies of each crate of the workspace, without those of tests and build scripts.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap().iter();
            let needed = all.filter(|dependency| dependency["kind"].is_null() && dependency["optional"] == false);
            (text(&package["name"]), needed.map(|dependency| text(&dependency["name"])).collect())
        })
        .collect()
}

#[test]
fn each_crate_depends_only_on_the_crates_below_it() {
    let dependencies = dependencies();
    let allowed: [(&str, &[&str]); 6] = [
        ("tollgate-core", &[]),
        ("tollgate-policy", &["tollgate-core"]),
        ("tollgate-store", &["tollgate-core"]),
        ("tollgate-api", &[]),
        ("tollgate-service", &["tollgate-core", "tollgate-policy", "tollgate-store"]),
        (
            "tollgate-server",
            &["tollgate-api", "tollgate-core", "tollgate-policy", "tollgate-service", "tollgate-store"],
        ),
    ];
    for (name, allowed) in allowed {
        let known: Vec<&str> =
            dependencies[name].iter().map(String::as_str).filter(|name| name.starts_with("tollgate-")).collect();
        assert_eq!(known, allowed, "{name}");
    }
}

#[test]
fn crates_below_the_server_use_no_protocol_and_core_and_policy_use_no_io() {
    let dependencies = dependencies();
    let protocols = ["axum", "hyper", "prost", "reqwest", "tonic", "tower", "utoipa"];
    let io = ["clap", "metrics", "notify", "redis", "rustls", "tokio", "tracing"];
    let forbidden: [(&str, &[&[&str]]); 5] = [
        ("tollgate-core", &[&protocols, &io, &["parking_lot", "rand", "serde", "serde_json"]]),
        ("tollgate-policy", &[&protocols, &io]),
        ("tollgate-store", &[&protocols, &["clap", "metrics", "notify"]]),
        ("tollgate-service", &[&protocols, &["clap", "notify", "redis", "rustls"]]),
        ("tollgate-api", &[&["axum", "hyper", "reqwest"], &io]),
    ];
    for (name, forbidden) in forbidden {
        for forbidden in forbidden.iter().copied().flatten() {
            assert!(!dependencies[name].contains(*forbidden), "{name} depends on {forbidden}");
        }
    }
}

/// A file of a crate, and the paths that it names in its own and in other crates.
struct Source {
    /// The module path, from the crate's root.
    module: Vec<String>,
    /// Paths; those within the crate begin at its root.
    paths: Vec<Vec<String>>,
}

/// Collects the paths of a file, without those of its tests.
struct Paths<'m> {
    module: &'m [String],
    found: Vec<Vec<String>>,
}

impl Paths<'_> {
    fn add(&mut self, path: &[String]) {
        let Some(first) = path.first() else { return };
        let relative = match first.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([self.module, &path[1..]].concat()),
            "super" => {
                let up = path.iter().take_while(|name| *name == "super").count();
                let parent = &self.module[..self.module.len().saturating_sub(up)];
                Some([parent, &path[up..]].concat())
            }
            _ => None,
        };
        if let Some(path) = relative {
            self.found.push([&["crate".to_owned()], &path[..]].concat());
        } else {
            self.found.push(path.to_vec());
            // A child module may be named without `self`.
            self.found.push([&["crate".to_owned()], self.module, path].concat());
        }
    }

    fn add_tree(&mut self, before: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_tree(&with(&path.ident), &path.tree),
            UseTree::Name(name) => self.add(&with(&name.ident)),
            UseTree::Rename(name) => self.add(&with(&name.ident)),
            UseTree::Glob(_) => self.add(before),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.add_tree(before, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.add(&path.segments.iter().map(|segment| segment.ident.to_string()).collect::<Vec<_>>());
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !item.attrs.iter().any(|attribute| attribute.path().is_ident("cfg")) {
            syn::visit::visit_item_mod(self, item);
        }
    }
}

fn sources(name: &str) -> Vec<Source> {
    let folder = root().join("crates").join(name).join("src");
    let mut files = Vec::new();
    collect(&folder, &mut files);
    let sources = files.iter().filter_map(|file| {
        let mut module: Vec<String> =
            file.strip_prefix(&folder).unwrap().with_extension("").iter().map(name_of).collect();
        if module.last().is_some_and(|last| last == "mod" || last == "lib") {
            module.pop();
        }
        let is_test = module.iter().any(|name| name == "tests");
        let parsed = syn::parse_file(&std::fs::read_to_string(file).unwrap()).unwrap();
        let mut paths = Paths { module: &module, found: Vec::new() };
        paths.visit_file(&parsed);
        let paths = paths.found;
        (!is_test && module.first().is_none_or(|name| name != "main")).then_some(Source { module, paths })
    });
    sources.collect()
}

fn name_of(part: &std::ffi::OsStr) -> String {
    part.to_str().unwrap().to_owned()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Cycles among files: files that name each other, directly or through others, where neither is the parent of the
/// other.
#[test]
fn files_of_a_crate_have_no_dependency_cycle() {
    for name in ["tollgate-core", "tollgate-policy", "tollgate-store", "tollgate-service", "tollgate-server"] {
        let sources = sources(name);
        let numbers: BTreeMap<&[String], usize> =
            sources.iter().enumerate().map(|(number, source)| (&source.module[..], number)).collect();
        let mut graph = DiGraphMap::<usize, ()>::new();
        for (number, source) in sources.iter().enumerate() {
            for path in source.paths.iter().filter(|path| path[0] == "crate") {
                let file = (0..path.len()).rev().find_map(|end| numbers.get(&path[1..=end]));
                let Some(other) = file.map(|other| &sources[*other]) else { continue };
                let related = other.module.starts_with(&source.module) || source.module.starts_with(&other.module);
                if !related {
                    graph.add_edge(number, numbers[&other.module[..]], ());
                }
            }
        }
        let circles: Vec<Vec<String>> = tarjan_scc(&graph)
            .into_iter()
            .filter(|files| files.len() > 1)
            .map(|files| files.into_iter().map(|file| sources[file].module.join("::")).collect())
            .collect();
        assert!(circles.is_empty(), "{name}: {circles:?}");
    }
}

#[test]
fn front_doors_do_not_depend_on_each_other() {
    for source in sources("tollgate-server") {
        for (door, other) in [("grpc", "rest"), ("rest", "grpc")] {
            if source.module.first().is_some_and(|name| name == door) {
                let knows =
                    source.paths.iter().any(|path| path[0] == "crate" && path.get(1).is_some_and(|n| n == other));
                assert!(!knows, "{} depends on {other}", source.module.join("::"));
            }
        }
    }
}

/// Allowed exceptions: the wiring builds stores; settings and `doctor` are about Redis; a worker thread selects its
/// connection; failed logins are limited per node, in its memory.
#[test]
fn only_the_wiring_names_a_concrete_store() {
    let wiring =
        ["run", "settings", "settings::defaults", "settings::redis", "doctor", "cli", "workers", "auth::throttle"];
    let concrete = ["memory", "redis"];
    for name in ["tollgate-service", "tollgate-server"] {
        for source in sources(name) {
            let module = source.module.join("::");
            let stores = source.paths.iter().filter(|path| path[0] == "tollgate_store");
            let named = stores.flatten().find(|part| concrete.contains(&part.as_str()));
            let may = name == "tollgate-server" && wiring.contains(&&*module);
            assert!(may || named.is_none(), "{name}: {module} names a store");
        }
    }
}
