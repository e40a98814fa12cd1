# Drafts an upgrade from two scripts that create the extension, an older and a newer one: functions and comments as
# the upgrade needs them, and, in comments, what is left to be written by hand. scripts/release draft runs it.

# Cuts the text of a script into its statements, without comments.
function statements(text, which,    i, c, two, end, statement, quoted) {
    for (i = 1; i <= length(text); i += length(c)) {
        c = substr(text, i, 1)
        two = substr(text, i, 2)
        if (two == "--" || two == "/*" || two == "$$" || c == "'") {
            end = two == "--" ? "\n" : two == "/*" ? "*/" : two == "$$" ? two : c
            quoted = index(substr(text, i + length(end)), end)
            if (quoted == 0) { print "draft-upgrade: " two " has no end" >"/dev/stderr"; exit 1 }
            quoted += 2 * length(end) - 1
            c = substr(text, i, quoted)
            if (end == "\n") statement = statement "\n"
            else if (end != "*/") statement = statement c
        } else if (c == ";") {
            add(statement, which)
            statement = ""
        } else {
            statement = statement c
        }
    }
}

function flat(text) {
    gsub(/[ \t\n]+/, " ", text)
    gsub(/\( /, "(", text)
    gsub(/ \)/, ")", text)
    gsub(/ ?, /, ",", text)
    sub(/^ /, "", text)
    sub(/ $/, "", text)
    return text
}

# Keeps a statement by the object that it is about: its text as it is, and one that is the same for all ways to
# write it.
function add(text, which,    plain, key) {
    gsub(/[ \t]+\n/, "\n", text)
    gsub(/\n+/, "\n", text)
    sub(/^[ \t\n]+/, "", text)
    plain = flat(text)
    if (plain == "") return
    if (tolower(plain) ~ /^create (or replace )?function /) {
        plain = tolower(plain)
        gsub(/"|@extschema@\./, "", plain)
        key = "function " signature(plain)
    } else if (plain ~ /^comment on /) {
        key = substr(plain, 1, index(plain, " is '") - 1)
    } else if (match(plain, /^create [a-z]+ [^ (]+/)) {
        key = substr(plain, 1, RLENGTH)
        if (key ~ /^create type /) types[substr(key, length("create type @extschema@.") + 1)]
    } else {
        key = plain
    }
    keys[which, ++count[which]] = key
    texts[which, key] = text
    plains[which, key] = plain
}

# What a function is called with and returns, without defaults.
function head(plain) {
    sub(/^create (or replace )?function /, "", plain)
    sub(/ (volatile|stable|immutable|strict|security|parallel|set|language) .*/, "", plain)
    gsub(/ default [^,)]+/, "", plain)
    return plain
}

# What `alter function` can change.
function attributes(plain) {
    if (!match(plain, / (volatile|stable|immutable|strict|security|parallel|set) .* language /)) return ""
    return substr(plain, RSTART, RLENGTH - length(" language "))
}

function without(text, part,    start) {
    start = part == "" ? 0 : index(text, part)
    return start ? substr(text, 1, start - 1) substr(text, start + length(part)) : text
}

# A function as PostgreSQL names it: with the types of its arguments.
function signature(plain,    name, arguments, argument, n, i, list) {
    plain = head(plain)
    name = substr(plain, 1, index(plain, "(") - 1)
    arguments = substr(plain, length(name) + 2)
    sub(/\).*/, "", arguments)
    n = split(arguments, argument, ",")
    for (i = 1; i <= n; i++) {
        sub(/^[^ ]+ /, "", argument[i])
        list = list (i > 1 ? ", " : "") argument[i]
    }
    return name "(" list ")"
}

# The statement that makes a function, with its schema and those of the extension's own types.
function creating(text, verb,    type, parts, n, i) {
    sub(/^[^"@(]*(@extschema@\.)?"?/, verb " @extschema@.", text)
    sub(/"?\(/, "(", text)
    gsub(/\t/, "    ", text)
    gsub(/ +,/, ",", text)
    n = split(text, parts, "'")
    text = ""
    for (i = 1; i <= n; i++) text = text (i > 1 ? "'" : "") (i % 2 ? tolower(parts[i]) : parts[i])
    for (type in types) gsub(" " type, " @extschema@." type, text)
    return text
}

# A function as it is now, for a database that has the older one. Without `or replace` where that goes: it would
# take over a function that is there and not the extension's.
function changing(key, old, new, text,    lost, n, i) {
    if (without(old, attributes(old)) != without(new, attributes(new))) {
        if (head(old) != head(new))
            by_hand("the names of arguments or the result have changed, which `create or replace` refuses:")
        print creating(text, "create or replace function") ";"
        return
    }
    n = split("strict security set", lost, " ")
    for (i = 1; i <= n; i++)
        if (attributes(old) ~ " " lost[i] " " && attributes(new) !~ " " lost[i] " ")
            by_hand("this no longer says `" lost[i] "`:")
    new = attributes(new)
    gsub(/,/, ", ", new)
    print "alter function @extschema@." substr(key, length("function ") + 1) "\n   " new ";"
}

# What is left to a person, as comments.
function by_hand(title, text) {
    gsub(/\n/, "\n--     ", text)
    print "-- By hand: " title
    if (text != "") print "--     " text
}

# The lines that only one of two texts has.
function difference(old, new,    lines, known, other, n, i, line, changes) {
    n = split(old, lines, "\n")
    for (i = 1; i <= n; i++) known[flat(lines[i])]
    i = split(new, lines, "\n")
    while (i > 0) other[flat(lines[i--])]
    n = split(old, lines, "\n")
    for (i = 1; i <= n; i++) if (!(flat(lines[i]) in other)) changes = changes "\n- " lines[i]
    n = split(new, lines, "\n")
    for (i = 1; i <= n; i++) if (!(flat(lines[i]) in known)) changes = changes "\n+ " lines[i]
    return substr(changes, 2)
}

FNR == 1 { file++ }
{ scripts[file] = scripts[file] $0 "\n" }

END {
    statements(scripts[1], "old")
    statements(scripts[2], "new")
    print "\\echo Use \"alter extension honcho update\" to load this file. \\quit"
    for (i = 1; i <= count["old"]; i++) {
        key = keys["old", i]
        if (("new", key) in plains) continue
        if (key ~ /^comment on /) by_hand("the new script lacks: " key)
        else by_hand("the new script lacks:", key ~ /^function / ? key : texts["old", key])
    }
    for (i = 1; i <= count["new"]; i++) {
        key = keys["new", i]
        if (key ~ /^(function|comment on) /) continue
        if (!(("old", key) in plains)) by_hand("new:", texts["new", key])
        else if (plains["old", key] != plains["new", key])
            by_hand(key " has changed:", difference(texts["old", key], texts["new", key]))
    }
    for (i = 1; i <= count["new"]; i++) {
        key = keys["new", i]
        is_new = !(("old", key) in plains)
        if (key !~ /^function / || plains["old", key] == plains["new", key]) continue
        print ""
        if (!is_new) {
            changing(key, plains["old", key], plains["new", key], texts["new", key])
        } else {
            print creating(texts["new", key], "create function") ";"
            print "revoke all on function @extschema@." substr(key, length("function ") + 1) " from public;"
        }
    }
    print ""
    for (i = 1; i <= count["new"]; i++) {
        key = keys["new", i]
        if (key ~ /^comment on / && plains["old", key] != plains["new", key]) print texts["new", key] ";"
    }
}
