//! Corpora of texts: planted duplicates are found, and nothing else is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use nadir::Error;
use nadir::data::corpus::{CorpusSettings, Reason, Report, build};
use nadir::io::parquet::read_texts;

/// Draws of a seed (SplitMix64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for i in (1..all.len()).rev() {
            all.swap(i, self.below(i + 1));
        }
    }
}

const THINGS: [&str; 24] = [
    "river", "lake", "forest", "meadow", "harbour", "glacier", "field", "desert", "road", "city",
    "dune", "reef", "valley", "island", "orchard", "swamp", "quarry", "airport", "canal", "coast",
    "village", "ridge", "delta", "park",
];
const LOOKS: [&str; 16] = [
    "dark", "bright", "green", "wide", "narrow", "frozen", "dry", "flooded", "old", "new", "dense",
    "sparse", "steep", "flat", "brown", "grey",
];
const VERBS: [&str; 12] = [
    "reflects",
    "absorbs",
    "surrounds",
    "crosses",
    "hides",
    "shows",
    "borders",
    "feeds",
    "covers",
    "divides",
    "meets",
    "replaces",
];
const WHEN: [&str; 10] = [
    "in spring",
    "after rain",
    "at noon",
    "in dry years",
    "every winter",
    "near the coast",
    "in the north",
    "at low tide",
    "before the harvest",
    "when clouds part",
];
const SENSORS: [&str; 6] =
    ["Sentinel-2", "Landsat 8", "the radar", "MODIS", "an aerial camera", "the drone"];

/// A sentence as papers on land cover have them: many share their pattern, and some their words.
fn sentence(draws: &mut Draws) -> String {
    let d = draws;
    match d.below(5) {
        0 => format!(
            "The {} {} {} a {} {} {}.",
            d.of(&LOOKS),
            d.of(&THINGS),
            d.of(&VERBS),
            d.of(&LOOKS),
            d.of(&THINGS),
            d.of(&WHEN)
        ),
        1 => format!(
            "As Fig. {} shows, {} sees the {} as {} {}.",
            d.below(9) + 1,
            d.of(&SENSORS),
            d.of(&THINGS),
            d.of(&LOOKS),
            d.of(&WHEN)
        ),
        2 => format!(
            "In {} of {} images the {} {} the {}.",
            d.below(90) + 10,
            d.below(900) + 100,
            d.of(&THINGS),
            d.of(&VERBS),
            d.of(&THINGS)
        ),
        3 => format!(
            "{} we found that a {} {} rarely {} a {}.",
            if d.below(2) == 0 { "However," } else { "Here" },
            d.of(&LOOKS),
            d.of(&THINGS),
            d.of(&VERBS),
            d.of(&THINGS)
        ),
        _ => format!(
            "It is {} {}, and the {} {} it with {} accuracy.",
            d.of(&LOOKS),
            d.of(&WHEN),
            d.of(&THINGS),
            d.of(&VERBS),
            d.of(&LOOKS)
        ),
    }
}

fn text(draws: &mut Draws, words: usize) -> String {
    let mut text = String::new();
    while text.split(' ').count() < words {
        text.push_str(&sentence(draws));
        text.push(' ');
    }
    text.trim_end().to_owned()
}

/// The same text as another file has it.
fn exact(draws: &mut Draws, text: &str) -> String {
    match draws.below(4) {
        0 => text.to_owned(),
        1 => text.to_uppercase(),
        2 => text.replace(' ', "\n"),
        _ => format!("  {}\n", text.replace(". ", ".  ").replace(',', "")),
    }
}

/// A few words changed, left out or added, or the end cut off.
fn near(draws: &mut Draws, text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    if draws.below(4) == 0 {
        words.truncate(words.len() - words.len() / 20);
        return words.join(" ");
    }
    for _ in 0..words.len().div_ceil(60) {
        let at = draws.below(words.len());
        match draws.below(3) {
            0 => words[at] = "revised",
            1 => words.insert(at, "also"),
            _ => drop(words.remove(at)),
        }
    }
    words.join(" ")
}

/// Two texts that share a notice, and less than the threshold of their shingles.
fn alike(draws: &mut Draws) -> [String; 2] {
    let notice = text(draws, 150);
    // 30 to 70 words of their own: a similarity of 0.5 to 0.7.
    let own = 30 + draws.below(40);
    [0, 1].map(|_| format!("{notice} {}", text(draws, own)))
}

fn write(path: &Path, documents: &[(usize, String)]) {
    let line = |(_, text): &(usize, String)| format!("{}\n", serde_json::json!({ "text": text }));
    fs::write(path, documents.iter().map(line).collect::<String>()).unwrap();
}

fn corpus(paths: &[PathBuf], out: &Path, settings: &CorpusSettings) -> Result<Report, Error> {
    build(paths, out, settings, None, false, &mut |_, _| Ok(()))
}

#[test]
fn planted_duplicates_are_found_and_nothing_distinct_is_dropped() {
    let draws = &mut Draws(1);
    // 1. 2,000 documents, 200 of which look like another
    let mut distinct: Vec<String> = Vec::new();
    for _ in 0..1800 {
        let words = 60 + draws.below(300);
        distinct.push(text(draws, words));
    }
    distinct.extend((0..100).flat_map(|_| alike(draws)).collect::<Vec<_>>());
    draws.shuffle(&mut distinct);
    // 2. 300 of them once more, and 300 nearly; each with the number of the first
    let mut numbers: Vec<usize> = (0..distinct.len()).collect();
    draws.shuffle(&mut numbers);
    let mut all: Vec<(usize, String)> = distinct.iter().cloned().enumerate().collect();
    all.extend(numbers[..300].iter().map(|&i| (i, exact(draws, &distinct[i]))));
    all.extend(numbers[300..600].iter().map(|&i| (i, near(draws, &distinct[i]))));
    draws.shuffle(&mut all);
    // 3. the corpus
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("a.jsonl"), folder.path().join("a.parquet"));
    write(&path, &all);
    let report = corpus(std::slice::from_ref(&path), &out, &CorpusSettings::default()).unwrap();
    let number = |name: &str| {
        let line: usize = name.rsplit(':').next().unwrap().parse().unwrap();
        all[line - 1].0
    };
    let mut found = BTreeMap::new();
    for dropped in &report.dropped {
        let (kind, of) = match &dropped.reason {
            Reason::Duplicate { of } => ("exact", of),
            Reason::NearDuplicate { of, similarity } => {
                assert!((0.8..=1.0).contains(similarity));
                ("near", of)
            }
            other => panic!("{}: {other:?}", dropped.document),
        };
        // The other of a planted pair, and nothing distinct.
        assert_eq!(number(&dropped.document), number(of), "{} of {of}", dropped.document);
        *found.entry(kind).or_insert(0) += 1;
    }
    assert!(found["exact"] >= 285 && found["near"] >= 285, "{found:?} of 300 each");
    println!("{found:?} of 300 each");
    assert_eq!(report.kept + report.dropped.len(), all.len());
    let rows = read_texts(&out).unwrap();
    assert_eq!(rows.len(), report.chunks);
    // 4. the same bytes on one thread
    let again = folder.path().join("b.parquet");
    let one = rayon_of_one(|| corpus(&[path], &again, &CorpusSettings::default()).unwrap());
    assert_eq!(one.dropped.len(), report.dropped.len());
    assert!(fs::read(&out).unwrap() == fs::read(&again).unwrap());
}

fn rayon_of_one<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(f)
}

#[test]
fn files_of_every_kind_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let root = folder.path().join("papers");
    fs::create_dir_all(root.join("b/.git")).unwrap();
    let put = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
    put(
        "z.txt",
        "A text has lines that end in the mid-\ndle of a word. It goes on.\n\nAnd a second paragraph.",
    );
    put(
        "b/a.md",
        "# A heading\n\nA note with a [link](http://x) and *stress*, which is long enough.\n\n```\ncode\n```\n",
    );
    put(
        "b/c.HTML",
        "<title>No</title><p>A page of <b>ten words</b> &amp; more, which nobody has written.<script>no()</script>",
    );
    put(
        "b/d.jsonl",
        "{\"text\": \"One of several documents in the lines of a single file.\"}\n\n{\"text\": \"1234 5678\"}\n{\"text\": \"12 34 56 78 90 12 34 56 78 90 ab\"}\n",
    );
    put("b/e.csv", "1,2");
    put("b/.git/f.txt", "Nobody wants to read what lies in such a folder of a tool.");
    for name in ["paper.pdf", "owned.pdf", "scan.pdf"] {
        fs::copy(shipped.join(name), root.join(name)).unwrap();
    }
    let out = folder.path().join("corpus.parquet");
    let report = corpus(std::slice::from_ref(&root), &out, &CorpusSettings::default()).unwrap();
    let rows: Vec<String> =
        read_texts(&out).unwrap().into_iter().flat_map(|row| row.texts).collect();
    let expected = [
        "A heading\nA note with a link and stress, which is long enough.",
        "A page of ten words & more, which nobody has written.",
        "One of several documents in the lines of a single file.",
        "Journal of Rivers and Lakes, vol. 7\nLand cover from space\nA satellite looks at the same river every five days. Its pictures show water, bare ground \
         and forest, which differ in what they reflect. Smith et al. have shown how (Fig. 3).\n1",
        "Land cover from space\nA satellite looks at the same river every five days. Its pictures show water, bare ground \
         and forest, which differ in what they reflect. Smith et al. have shown how (Fig. 3).\nWater is dark in the \
         infrared, since it absorbs most of what reaches it. A lake that freezes over becomes bright, and a muddy one lies \
         between the two. This is the first confusion that a classifier of land cover has to live with.\nCrop land changes \
         with the season. It is bare ground in winter, green in spring and yellow when the grain is ripe.",
        "A text has lines that end in the middle of a word. It goes on.\nAnd a second paragraph.",
    ];
    assert_eq!(rows, expected);
    assert_eq!((report.files, report.other_files, report.documents), (7, 1, 9));
    let reasons: Vec<_> = report.dropped.iter().map(|d| d.reason.clone()).collect();
    let few = Reason::FewLetters { letters: 2.0 / 22.0 };
    assert_eq!(reasons, [Reason::TooShort { words: 2 }, few, Reason::NoText]);
    let json = fs::read(folder.path().join("corpus.report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!((&json["kept"], &json["reasons"]["too short"]), (&6.into(), &1.into()));
    let csv = fs::read_to_string(folder.path().join("corpus.dropped.csv")).unwrap();
    assert!(csv.contains("d.jsonl:3,too short,,,2 words\n"), "{csv}");
    // A chunk is a sentence where two are too long for one, and knows its document.
    let settings = CorpusSettings { chunk_words: 12, ..CorpusSettings::default() };
    let small = folder.path().join("small.parquet");
    corpus(&[root.join("z.txt")], &small, &settings).unwrap();
    let rows: Vec<String> =
        read_texts(&small).unwrap().into_iter().flat_map(|row| row.texts).collect();
    assert_eq!(
        rows,
        [
            "A text has lines that end in the middle of a word.",
            "It goes on.\nAnd a second paragraph."
        ]
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let paper = fs::read(shipped.join("paper.pdf")).unwrap();
    let good = "{\"text\": \"Enough words to be a document that is kept in a corpus.\"}\n";
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let cases = [
        (shipped.join("locked.pdf"), &["locked.pdf", "password", "qpdf"][..]),
        (put("cut.pdf", &paper[..paper.len() / 2]), &["cut.pdf", "a readable PDF"]),
        (put("none.pdf", b"none"), &["none.pdf", "a readable PDF"]),
        (put("latin.txt", b"caf\xe9"), &["latin.txt", "UTF-8", "iconv"]),
        (
            put("cut.jsonl", format!("{good}{{\"text\": \"not to the e").as_bytes()),
            &["cut.jsonl", "line 2", "EOF"],
        ),
        (
            put("other.jsonl", format!("{good}\n{{\"body\": 1}}\n").as_bytes()),
            &["other.jsonl", "line 3", "\"body\"", "--text-field"],
        ),
        (put("number.jsonl", b"{\"text\": 7}"), &["line 1", "text = 7"]),
        (folder.path().join("none.txt"), &["none.txt", "No such file"]),
        (put("a.docx", b""), &["a.docx", ".docx", ".pdf"]),
    ];
    let out = folder.path().join("corpus.parquet");
    for (path, parts) in &cases {
        let error =
            corpus(std::slice::from_ref(path), &out, &CorpusSettings::default()).unwrap_err();
        assert!(matches!(error, Error::File { .. } | Error::Io { .. }), "{error}");
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert!(!out.exists());
    }
    // Left out, if that is wished for; the rest of a file is read all the same.
    let settings = CorpusSettings { skip_unreadable: true, ..CorpusSettings::default() };
    let paths: Vec<PathBuf> = cases[..7].iter().map(|(path, _)| path.clone()).collect();
    let report = corpus(&paths, &out, &settings).unwrap();
    let names: BTreeSet<_> =
        report.dropped.iter().map(|d| d.document.rsplit('/').next().unwrap()).collect();
    assert_eq!(report.counts(), [("unreadable", 7), ("duplicate", 1)]);
    assert!(names.contains("cut.jsonl:2") && names.contains("locked.pdf"), "{names:?}");
    assert_eq!(report.kept, 1);
}

/// Whatever happens to a PDF's bytes, there is a text or an error.
#[test]
fn damaged_pdfs_end_in_an_error_or_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let draws = &mut Draws(2);
    let mut paths = Vec::new();
    for name in ["paper.pdf", "owned.pdf", "locked.pdf"] {
        let whole = fs::read(shipped.join(name)).unwrap();
        for i in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..1 + draws.below(8) {
                let at = draws.below(bytes.len());
                bytes[at] = draws.below(256) as u8;
            }
            if i % 3 == 0 {
                bytes.truncate(draws.below(whole.len()));
            }
            paths.push(folder.path().join(format!("{i}-{name}")));
            fs::write(paths.last().unwrap(), bytes).unwrap();
        }
    }
    let settings = CorpusSettings { skip_unreadable: true, ..CorpusSettings::default() };
    let out = folder.path().join("a.parquet");
    let report = corpus(&paths, &out, &settings).unwrap();
    assert_eq!(report.documents, paths.len());
    // A form that draws itself.
    let looped = "%PDF-1.4\n1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj\n2 0 obj <</Type/Pages/Kids[3 0 R]/Count 1>> endobj\n\
        3 0 obj <</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Resources<</XObject<</F 5 0 R>>>>/Contents 4 0 R>> endobj\n\
        4 0 obj <</Length 4>> stream\n/F Do\nendstream endobj\n\
        5 0 obj <</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</F 5 0 R>>>>/Length 5>> stream\n/F Do\nendstream endobj\n\
        trailer <</Root 1 0 R/Size 6>>\nstartxref\n0\n%%EOF\n";
    let path = folder.path().join("loop.pdf");
    fs::write(&path, looped).unwrap();
    let error = corpus(&[path], &folder.path().join("b.parquet"), &CorpusSettings::default());
    assert!(error.unwrap_err().to_string().contains("loop.pdf"));
}

#[test]
fn an_output_is_whole_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.txt");
    fs::write(&path, "Enough words to be a document that is kept in a corpus.").unwrap();
    let short = folder.path().join("b.txt");
    fs::write(&short, "too short").unwrap();
    let out = folder.path().join("c.parquet");
    let entries = || fs::read_dir(folder.path()).unwrap().count();
    let settings = CorpusSettings::default();
    // Nothing is left of it after cleaning.
    let error = corpus(&[short], &out, &settings).unwrap_err().to_string();
    assert!(error.contains("none of 1: 1 too short") && error.contains("--min-words"), "{error}");
    fs::create_dir(folder.path().join("empty")).unwrap();
    let error = corpus(&[folder.path().join("empty")], &out, &settings).unwrap_err();
    assert!(error.to_string().contains("none in 0 files"), "{error}");
    // Interrupted.
    let stop = &mut |_, _| Err(Error::Interrupted);
    let error = build(std::slice::from_ref(&path), &out, &settings, None, false, stop).unwrap_err();
    assert!(matches!(error, Error::Interrupted));
    assert_eq!(entries(), 3);
    // Another file takes the name meanwhile: it stays, and has no reports beside it.
    let late = &mut |done, files| {
        if done == files {
            fs::write(&out, "another").unwrap();
        }
        Ok(())
    };
    let error = build(std::slice::from_ref(&path), &out, &settings, None, false, late).unwrap_err();
    assert!(error.to_string().contains("c.parquet"), "{error}");
    assert_eq!((entries(), fs::read(&out).unwrap()), (4, b"another".to_vec()));
    fs::remove_file(&out).unwrap();
    // No folder, a folder, a file.
    let error = corpus(std::slice::from_ref(&path), &folder.path().join("no/c.parquet"), &settings)
        .unwrap_err();
    assert!(error.to_string().contains("mkdir -p"), "{error}");
    let one = [path.clone()];
    corpus(&one, &out, &settings).unwrap();
    assert_eq!(entries(), 6);
    let old = fs::read(&out).unwrap();
    let error = corpus(&one, &out, &settings).unwrap_err().to_string();
    assert!(error.contains("c.parquet") || error.contains("c.report.json"), "{error}");
    fs::write(&path, "Other words make another document, which takes the place of it.").unwrap();
    build(&one, &out, &settings, None, true, &mut |_, _| Ok(())).unwrap();
    assert_ne!(fs::read(&out).unwrap(), old);
    let error =
        build(&one, &folder.path().join("empty"), &settings, None, true, &mut |_, _| Ok(()));
    assert!(error.unwrap_err().to_string().contains("empty"));
    for wrong in [
        CorpusSettings { chunk_words: 0, ..settings.clone() },
        CorpusSettings { similarity: 0.0, ..settings.clone() },
        CorpusSettings { min_letters: f64::NAN, ..settings.clone() },
    ] {
        let error = corpus(&one, &folder.path().join("d.parquet"), &wrong).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}
