-- The extension works from a schema of its own, whatever the caller's search_path holds.
create schema shop;
create extension honcho schema shop;
select shop.honcho_create_coupon('PROMO', 2);

-- Look-alikes that must not be touched.
create table public.coupons (name text, remaining_amount int);
create table public.claims (user_id text, coupon_name text);
create type public.honcho_outcome as enum ('fooled');
create function public.fool(text, text) returns boolean language sql as 'select false';
create operator public.= (leftarg = text, rightarg = text, function = public.fool);
set search_path = public, pg_catalog;
select shop.honcho_claim('ann', 'PROMO'), shop.honcho_claim('ann', 'PROMO'), pg_typeof(shop.honcho_claim('bob', 'PROMO'));
select outcome from shop.honcho_claim_batch('PROMO', array['ann', 'eve']);
select remaining_amount from shop.honcho_get_coupon('PROMO');
select name from shop.honcho_list_coupons();
select user_id from shop.honcho_list_claims('PROMO');
select user_id from shop.honcho_get_claim('ann', 'PROMO');
select coupon_name, invariant, holds from shop.honcho_verify('PROMO');
reset search_path;
select count(*) from public.claims;

-- Created anew in another schema in the same session.
drop extension honcho;
drop table public.coupons, public.claims;
drop operator public.= (text, text);
drop function public.fool;
drop type public.honcho_outcome;
create extension honcho;
select honcho_create_coupon('PROMO', 1);
select honcho_claim('ann', 'PROMO'), honcho_claim('ann', 'PROMO');
select remaining_amount from honcho_get_coupon('PROMO');
alter extension honcho set schema shop;
drop extension honcho;
drop schema shop;
