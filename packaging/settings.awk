# Writes /etc/default/honcho-service from `honcho-service --help`: every setting that stands under a heading there,
# commented out, with its default.

function wrapped(text,    line, words, count, i) {
    count = split(text, words, " ")
    line = "#"
    for (i = 1; i <= count; i++) {
        if (length(line) + length(words[i]) > 98) {
            print line
            line = "#"
        }
        line = line " " words[i]
    }
    print line
}

function emit(    default_value) {
    if (name == "") return
    print ""
    # A default of several words is a rule and not a value, and so are these two words.
    if (match(text, /\[default: [^] ]+\]/) && text !~ /\[default: (any|none)\]/) {
        default_value = substr(text, RSTART + 10, RLENGTH - 11)
        text = substr(text, 1, RSTART - 2)
    }
    wrapped(text)
    if (name == "DATABASE_URL") {
        wrapped("This one is in the PostgreSQL of this machine, which accepts the service by the name of its " \
                "user, without a password. To create it: " \
                "sudo -u postgres psql -f /usr/share/honcho-service/database.sql")
        print "DATABASE_URL=postgresql://honcho_service@/honcho?host=/run/postgresql"
    } else {
        print "#" name "=" default_value
    }
    name = ""
}

BEGIN {
    print "# Settings of honcho-service. Commented lines show the defaults."
    print "# After a change: systemctl restart honcho-service"
}
/^[^ ]/ {
    emit()
    heading = /^[A-Z][A-Za-z ]*:$/ && $0 != "Options:"
    if (heading) printf "\n\n# %s\n", substr($0, 1, length($0) - 1)
    next
}
heading && /^ +(-[A-Za-z], +)?--[a-z]/ {
    emit()
    match($0, /--[a-z-]+/)
    name = toupper(substr($0, RSTART + 2, RLENGTH - 2))
    gsub("-", "_", name)
    text = substr($0, RSTART + RLENGTH)
    sub(/^ *(<[^>]*>)?(\.\.\.)? */, "", text)
    next
}
heading && NF > 0 {
    sub(/^ +/, "")
    text = text " " $0
}
END { emit() }
