# Lists of what is in an image (SPDX 2.3, JSON): Debian's packages from dpkg's status, crates from Cargo.lock as cargo
# resolves it for the programs, Go's modules from the programs themselves. Sourced by release.sh.
# shellcheck shell=bash

# Each prints lines of: package URL, name, version, SPDX licence expression or nothing; separated by tabs. A recipe's OTHER
# has such lines, too.
sbom_debian() { # TAR
    tar -xOf "$1" ./var/lib/dpkg/status | awk -v OFS='\t' '
        function tell() { if (name != "") print "pkg:deb/debian/" name "@" version "?arch=" arch, name, version, ""; name = "" }
        /^Package: / { name = $2 } /^Version: / { version = $2 } /^Architecture: / { arch = $2 }
        /^$/ { tell() } END { tell() }'
}

sbom_rust() { # ARCH PROGRAM…
    local target packages=() package
    case $1 in
    amd64) target=x86_64-unknown-linux-musl ;;
    arm64) target=aarch64-unknown-linux-musl ;;
    esac
    shift
    for package in $(cd "$CHECKOUT" && cargo metadata --locked --no-deps --format-version=1 |
        jq -r --arg names "$*" '($names | split(" ")) as $names | .packages[] |
            select(any(.targets[]; (.kind | index("bin")) and (.name as $it | $names | index($it)))) | .name'); do
        packages+=(--package "$package")
    done
    (cd "$CHECKOUT" && cargo tree --locked --target "$target" --edges normal,no-proc-macro --prefix none \
        --format $'{p}\t{l}' "${packages[@]}") |
        awk -F '\t' -v OFS='\t' '{
            sub(/ \(\*\)$/, "", $2); split($1, part, " "); sub(/^v/, "", part[2]); gsub(/\//, " OR ", $2)
            print "pkg:cargo/" part[1] "@" part[2], part[1], part[2], $2 }'
}

sbom_go() { # FILE…
    go version -m "$@" | awk -v OFS='\t' '
        function tell() { if (name != "") print "pkg:golang/" name "@" version, name, version, ""; name = "" }
        !/^\t/ { tell(); version = $NF; sub(/^go/, "", version); name = "stdlib"; tell() }
        $1 == "dep" || $1 == "mod" { tell(); name = $2; version = $3 }
        $1 == "=>" { name = $2; version = $3 }
        END { tell() }'
}

# sbom NAME ARCH: the list, on standard output.
sbom() {
    local name=$1 arch=$2 files=() program ROOT RUST GO OTHER=()
    "contents_${name//-/_}" "$arch"
    for program in "${GO[@]}"; do files+=("$CHECKOUT/bin/linux-$arch/$program"); done
    {
        [ -z "$ROOT" ] || sbom_debian "$ROOT"
        [ ${#RUST[@]} = 0 ] || sbom_rust "$arch" "${RUST[@]}"
        [ ${#files[@]} = 0 ] || sbom_go "${files[@]}"
        [ ${#OTHER[@]} = 0 ] || printf '%s\n' "${OTHER[@]}"
    } | LC_ALL=C sort -u | jq -Rn --arg image "$name" --arg arch "$arch" --arg version "$VERSION" --arg revision "$REVISION" \
        --arg created "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" '
        def package($id; $row): {SPDXID: $id, name: $row[1], versionInfo: $row[2], downloadLocation: "NOASSERTION",
            filesAnalyzed: false, licenseConcluded: "NOASSERTION", copyrightText: "NOASSERTION",
            licenseDeclared: (if ($row[3] // "") == "" then "NOASSERTION" else $row[3] end),
            externalRefs: [{referenceCategory: "PACKAGE-MANAGER", referenceType: "purl", referenceLocator: $row[0]}]};
        [inputs | split("\t")] as $rows |
        "SPDXRef-image" as $root |
        {spdxVersion: "SPDX-2.3", dataLicense: "CC0-1.0", SPDXID: "SPDXRef-DOCUMENT", name: "\($image)-\($arch)",
         documentNamespace: "https://spdx.org/spdxdocs/\($image)-\($arch)-\($version)-\($revision)",
         creationInfo: {created: $created, creators: ["Tool: hpk-images-sbom"]},
         packages: ([package($root; ["pkg:oci/\($image)@\($version)?arch=\($arch)", $image, $version, ""])] +
             [$rows | to_entries[] | package("SPDXRef-\(.key)"; .value)]),
         relationships: ([{spdxElementId: "SPDXRef-DOCUMENT", relationshipType: "DESCRIBES", relatedSpdxElement: $root}] +
             [$rows | keys[] | {spdxElementId: $root, relationshipType: "CONTAINS", relatedSpdxElement: "SPDXRef-\(.)"}])}'
}
