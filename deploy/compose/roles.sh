#!/bin/sh
# Run once by the image of PostgreSQL, for an empty database: the owner of the tables, and the role that Mosaic runs as.
set -eu
psql --set=ON_ERROR_STOP=1 --username postgres \
    --set=owner="$MOSAIC_OWNER_PASSWORD" --set=app="$MOSAIC_APP_PASSWORD" <<'SQL'
create role mosaic_owner login password :'owner';
create role mosaic_app login password :'app';
create database mosaic owner mosaic_owner template template0 encoding 'UTF8';
revoke all on database mosaic from public;
grant connect on database mosaic to mosaic_app;
\connect mosaic
alter schema public owner to mosaic_owner;
revoke all on schema public from public;
SQL
