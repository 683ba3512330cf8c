#!/bin/sh
# Makes what a person needs who has a say in a deployment: a certificate with its key, to be known by, and a recovery key.
# Usage: make-people.sh FOLDER NAME...
set -eu
folder=$1
shift
umask 077
mkdir -p "$folder"
for name in "$@"; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$name" \
        -keyout "$folder/$name.key" -out "$folder/$name.crt" 2>/dev/null
    openssl genrsa -out "$folder/$name-recovery.key" 3072 2>/dev/null
    openssl rsa -in "$folder/$name-recovery.key" -pubout -out "$folder/$name-recovery.pub" 2>/dev/null
done
